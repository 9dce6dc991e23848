"""Undocumented names of DeepSpeed that we use, and the versions known to have them.

Files are those of DeepSpeed 0.19.8, below `deepspeed/`. Each is imported when it is first used.
"""

from __future__ import annotations

import traceback
from types import MappingProxyType
from typing import Any

import torch

from ....undocumented import Library, Method, Name, View

DEEPSPEED = Library("DeepSpeed", "deepspeed", ("0.19.8",), "pip install deepspeed==0.19.8")


class EngineView(View):
    """`DeepSpeedEngine` (runtime/engine.py)."""

    library = DEEPSPEED
    reduce_gradients = Method("allreduce_gradients")
    destroy = Method("destroy")
    global_grad_norm = Method("get_global_grad_norm")
    # Used by `coalesce_grad_reduction`, which itself refuses an accumulation that its caller counts.
    inside_no_sync = Name("inside_no_sync_ctxt")
    flush_zero_12 = Method("_flush_coalesced_reduction_zero12")
    flush_zero_3 = Method("_flush_coalesced_reduction_zero3")


class ZeroView(View):
    """What the engine's `optimizer` has at all stages."""

    library = DEEPSPEED
    averaged_gradients = Name("averaged_gradients")
    clip_norm = Name("clip_grad")
    coalesces_reduction = Name("_coalesce_grad_reduction")
    loss_scaler = Name("loss_scaler")
    overflow = Name("overflow")
    number_of = Method("get_param_id")
    reduce_bucket_size = Name("reduce_bucket_size")
    leaf_parameters: Any = MappingProxyType({})  # none at stages 1 and 2


class Zero12View(ZeroView):
    """`DeepSpeedZeroOptimizer` (runtime/zero/stage_1_and_2.py)."""

    groups = Name("bit16_groups")
    partitions = Name("single_partition_of_fp32_groups")
    offloads = Name("cpu_offload")
    collect_gradient = Method("process_gradients")
    update_parameters = Method("update_lp_params")


class Zero3View(ZeroView):
    """`DeepSpeedZeroOptimizer_Stage3` (runtime/zero/stage3.py)."""

    groups = Name("fp16_groups")
    partitions = Name("fp32_partitioned_groups_flat")
    leaf_parameters = Name("leaf_parameters")
    persistent_parameters = Name("persistent_parameters")
    gradient_positions = Name("grad_position")
    gradient_partitions = Name("_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition")
    collect_gradient = Method("reduce_ready_partitions_and_remove_grads")
    partition_parameters = Method("_partition_all_parameters")
    update_parameters = Method("_reassign_or_swap_out_partitioned_parameters")


class ScalerView(View):
    """`LossScalerBase` (runtime/fp16/loss_scaler.py)."""

    library = DEEPSPEED
    is_dynamic = Name("dynamic")


class DynamicScalerView(ScalerView):
    """`DynamicLossScaler`: it counts updates from 0, and knows the last one that was skipped; -1 if none."""

    scale = Name("cur_scale")
    updates = Name("cur_iter")
    last_skipped = Name("last_overflow_iter")
    hysteresis = Name("cur_hysteresis")
    full_hysteresis = Name("delayed_shift")


class LinkedParameter(View):
    """A trained parameter at stages 1 and 2 (utils/mixed_precision_linkage.py).

    fragment: its fragment in this worker's partition; `None` if there is none.
    """

    library = DEEPSPEED
    fragment = Name("_hp_mapping")


class FragmentView(View):
    """`tensor_fragment` (utils/tensor_fragment.py); addresses have `start` and `numel`."""

    library = DEEPSPEED
    group = Name("param_group_index")
    of_parameter = Name("lp_fragment")
    in_parameter = Name("lp_fragment_address")
    in_partition = Name("hp_fragment_address")


class PartitionedParameter(View):
    """A parameter at stage 3 (runtime/zero/partition_parameters.py)."""

    library = DEEPSPEED
    shape = Name("ds_shape")
    numel = Name("ds_numel")
    held = Name("ds_tensor")
    partition_numel = Name("partition_numel")
    status = Name("ds_status")
    gather = Name("all_gather")


class Communication(View):
    """The module comm/comm.py.

    backend: the object with all collectives of DeepSpeed's job; `None` if it has joined none.
    """

    library = DEEPSPEED
    backend = Name("cdb")


class Groups(View):
    """The module utils/groups.py."""

    library = DEEPSPEED
    copy_of_world = Name("_WORLD_GROUP")  # stage 3 makes one, for itself
    forget = Name("_release_process_group_references")


class ZeroToFp32(View):
    """The module utils/zero_to_fp32.py; only its functions that read a whole checkpoint are documented."""

    library = DEEPSPEED
    find_model_files = Name("get_model_state_files")
    find_optimizer_files = Name("get_optim_files")
    read_models = Name("parse_model_states")
    read_optimizers = Name("parse_optim_states")
    join_zero_12 = Name("_get_fp32_state_dict_from_zero2_checkpoint")
    join_zero_3 = Name("_get_fp32_state_dict_from_zero3_checkpoint")


def check(stage: int) -> None:
    """Check what training at a stage of ZeRO needs, as far as possible without an engine.

    Raises:
        EngineUnavailableError: the installed DeepSpeed lacks it.
    """
    EngineView.check_class(DEEPSPEED.load("deepspeed", "DeepSpeedEngine"))
    communication()
    groups()
    zero_config()
    if stage == 3:
        Zero3View.check_class(DEEPSPEED.load("deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3"))
        _apart()
        modules_under_way()
        release_cache()
    else:
        Zero12View.check_class(DEEPSPEED.load("deepspeed.runtime.zero.stage_1_and_2", "DeepSpeedZeroOptimizer"))


def communication() -> Communication:
    return Communication(DEEPSPEED.load("deepspeed.comm.comm"))


def dynamic_loss_scaler(zero: ZeroView) -> DynamicScalerView | None:
    """Return what changes the loss scale; `None` if the scale is constant."""
    scaler = zero.loss_scaler
    return DynamicScalerView(scaler) if ScalerView(scaler).is_dynamic else None


def offloaded_gradients(zero: Zero12View) -> dict[int, torch.Tensor]:
    """Return the sums over a step's micro-batches that are kept on the CPU, by the parameter's number."""
    found: dict[int, torch.Tensor] = DEEPSPEED.get(zero.real, "accumulated_grads_in_cpu") if zero.offloads else {}
    return found


def collectives_of(backend: Any) -> dict[str, Any]:
    """Return the collectives of DeepSpeed's backend that ZeRO waits for (comm/torch.py)."""
    names = ("all_gather", "all_gather_into_tensor", "all_reduce", "reduce", "reduce_scatter_tensor")
    return {name: DEEPSPEED.get(backend, name) for name in names}


def groups() -> Groups:
    return Groups(DEEPSPEED.load("deepspeed.utils.groups"))


def zero_to_fp32() -> ZeroToFp32:
    return ZeroToFp32(DEEPSPEED.load("deepspeed.utils.zero_to_fp32"))


def is_partitioned(tensor: Any) -> bool:
    """Whether this is a parameter of stage 3, gathered or not."""
    return hasattr(tensor, PartitionedParameter.shape.name)


def is_apart(tensor: Any) -> bool:
    """Whether this is a parameter of stage 3 that is not gathered."""
    return bool(getattr(tensor, PartitionedParameter.status.name, None) == _apart())


def scalar_met(error: RuntimeError) -> str | None:
    """Return the name of the scalar parameter that zero.Init stopped at, if that is what happened.

    By a local function of `zero.Init` and its variables (runtime/zero/partition_parameters.py).
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_post_init_method":
            name, parameter = frame.f_locals.get("name"), frame.f_locals.get("param")
            if isinstance(name, str) and getattr(parameter, "ndim", None) == 0:
                return name
    return None


def whole_numel(parameter: Any) -> int:
    """Return the number of elements of a whole parameter."""
    return int(PartitionedParameter(parameter).numel if is_partitioned(parameter) else parameter.numel())


def _apart() -> Any:
    statuses = DEEPSPEED.load("deepspeed.runtime.zero.partition_parameters", "ZeroParamStatus")
    return DEEPSPEED.get(statuses, "NOT_AVAILABLE")


def operators() -> dict[str, Any]:
    """Return which compiled operators work here, by name; DeepSpeed finds it at the first call."""
    found: dict[str, Any] = DEEPSPEED.load("deepspeed.ops", "__compatible_ops__")
    return found


def zero_config() -> Any:
    """Return the class of the settings below "zero_optimization", a pydantic model."""
    return DEEPSPEED.load("deepspeed.runtime.zero.config", "DeepSpeedZeroConfig")


def zero_stage(stage: int) -> Any:
    """Return a stage in the checkpoints' type."""
    return DEEPSPEED.load("deepspeed.runtime.zero.config", "ZeroStageEnum")(stage)


def fragment_address(numel: int, start: int) -> Any:
    """Return the position of a fragment in the checkpoints' type."""
    return DEEPSPEED.load("deepspeed.utils.tensor_fragment", "fragment_address")(numel=numel, start=start)


def loss_scaler(scale: float) -> Any:
    """Return a constant loss scale in the checkpoints' type."""
    return DEEPSPEED.load("deepspeed.runtime.fp16.loss_scaler", "LossScaler")(scale=scale)


def launcher() -> Any:
    """Return the module of the command `deepspeed`."""
    return DEEPSPEED.load("deepspeed.launcher.runner")


def modules_under_way() -> list[Any]:
    """Return stage 3's list of modules in a forward pass; every model that it was given stays at its begin."""
    found: list[Any] = DEEPSPEED.load("deepspeed.runtime.zero.parameter_offload", "FWD_MODULE_STACK")
    return found


def release_cache() -> Any:
    """Return stage 3's cache, by module, of the parameters to release after it."""
    module = "deepspeed.runtime.zero.partitioned_param_coordinator"
    coordinator = DEEPSPEED.load(module, "PartitionedParameterCoordinator")
    method = DEEPSPEED.get(coordinator, "_PartitionedParameterCoordinator__params_to_release")
    # DeepSpeed's decorator around the cache hides it.
    decorated = [cell.cell_contents for cell in getattr(method, "__closure__", None) or ()]
    cached = [candidate for candidate in (method, *decorated) if hasattr(candidate, "cache_clear")]
    if not cached:
        raise DEEPSPEED.lacks(f"cache in {method.__qualname__}")
    return cached[0]
