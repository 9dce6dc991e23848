"""DeepSpeed's configuration: our values where its defaults change the curve, and the settings that a user may add."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from ....errors import OptionError, did_you_mean
from .compat import zero_config

Precision = Literal["float32", "bf16", "fp16"]

_SETTABLE = (
    "activation_checkpointing",
    "bf16",
    "comms_logger",
    "communication_data_type",
    "csv_monitor",
    "data_types",
    "disable_python_gc",
    "dump_state",
    "flops_profiler",
    "fp16",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "tensorboard",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "wall_clock_breakdown",
    "wandb",
    "zero_optimization",
)
_REFUSED = {
    "optimizer": "prepare() gets the optimizer; DeepSpeed's own (DeepSpeedCPUAdam, FusedAdam) may be passed there",
    "scheduler": "prepare() gets the scheduler",
    "managed_gradient_accumulation": "prepare(accumulate=...) decides it",
    "gradient_allreduce_op": "gradients are the mean over the global batch on every engine",
    "zero_allow_untested_optimizer": "this strategy checks the optimizer itself",
    "zero_force_ds_cpu_optimizer": "the optimizer that prepare() gets is kept",
    "aio": "it belongs to offload to NVMe, whose results are wrong on several workers",
    "elasticity": "DeepSpeed removed it",
    "torch_autocast": "use precision='bf16', or torch.autocast in loss_fn",
}


def read_config(config: Mapping[str, Any] | str | PathLike[str] | None) -> dict[str, Any]:
    """Return a user's configuration as a new dict; values "auto" count as not given.

    Raises:
        OptionError: no such file, not JSON, or a key that DeepSpeed does not have or that this strategy sets.
    """
    if config is None:
        return {}
    if isinstance(config, Mapping):
        read: Any = copy.deepcopy(dict(config))
    else:
        try:
            read = json.loads(Path(config).read_text())
        except OSError as error:
            raise OptionError(f"the DeepSpeed config {config} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise OptionError(f"the DeepSpeed config {config} is not JSON: {error}") from None
    if not isinstance(read, dict):
        raise OptionError(f"a DeepSpeed config is a dict, not a {type(read).__name__}")
    for key in read:
        if key in _REFUSED:
            raise OptionError(f"{key!r} in the DeepSpeed config: {_REFUSED[key]}")
        if key not in _SETTABLE:
            raise OptionError(
                f"DeepSpeed has no setting {key!r} that this strategy accepts.{did_you_mean(key, _SETTABLE)} "
                f"It takes: {', '.join(_SETTABLE)}"
            )
    return {key: _without_auto(value) for key, value in read.items() if value != "auto"}


def full_config(user: Mapping[str, Any], stage: int, offload: bool, precision: Precision) -> dict[str, Any]:
    """Return the configuration for DeepSpeed: our values, overridden by the user's.

    Raises:
        OptionError: the user's contradicts the strategy, or has a wrong or unknown value.
    """
    zero = user.get("zero_optimization", {})
    _check_zero(zero, stage)
    cpu = {"device": "cpu", "pin_memory": False}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only counts with it; batches() sets the size
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,  # by default DeepSpeed clips at 1
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        **{key: value for key, value in user.items() if key not in _COUNTED},
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            **({"offload_optimizer": cpu} if offload else {}),
            **({"offload_param": cpu} if offload and stage == 3 else {}),
            **zero,
        },
    }
    for kind in ("bf16", "fp16"):
        section = user.get(kind, {})
        if "enabled" in section and section["enabled"] != (precision == kind):
            raise OptionError(
                f"{kind}.enabled={section['enabled']} in the DeepSpeed config contradicts precision={precision!r}"
            )
        settings[kind] = {**section, "enabled": precision == kind}
    _check_values(settings)
    return settings


# Settings about batches, which prepare() and batches() must not contradict.
_COUNTED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def check_prepared(user: Mapping[str, Any], accumulate: int, clip_norm: float | None) -> None:
    """Compare a user's configuration with the arguments of `prepare`.

    Raises:
        OptionError: they contradict each other; the message names both.
    """
    steps = user.get("gradient_accumulation_steps", accumulate)
    if steps != accumulate:
        raise OptionError(
            f"prepare(accumulate={accumulate}) contradicts gradient_accumulation_steps={steps} in the DeepSpeed config"
        )
    clipping = user.get("gradient_clipping")
    if clip_norm is not None and clipping is not None and clipping != clip_norm:
        raise OptionError(
            f"prepare(clip_norm={clip_norm}) contradicts gradient_clipping={clipping} in the DeepSpeed config"
        )


def check_batch(user: Mapping[str, Any], global_batch_size: int, accumulate: int, world_size: int) -> None:
    """Compare a user's configuration with the global batch size.

    Raises:
        OptionError: they contradict each other; the message names both.
    """
    configured = user.get("train_batch_size", global_batch_size)
    if configured != global_batch_size:
        raise OptionError(
            f"batches(global_batch_size={global_batch_size}) contradicts train_batch_size={configured} in DeepSpeed's "
            "config"
        )
    micro = user.get("train_micro_batch_size_per_gpu")
    if micro is not None and micro * accumulate * world_size != global_batch_size:
        raise OptionError(
            f"batches(global_batch_size={global_batch_size}) contradicts train_micro_batch_size_per_gpu={micro} in the "
            f"DeepSpeed config, which with accumulate={accumulate} on {world_size} workers makes "
            f"{micro * accumulate * world_size}"
        )


def _check_zero(zero: Any, stage: int) -> None:
    if not isinstance(zero, dict):
        raise OptionError(f"zero_optimization in the DeepSpeed config is a dict, not {zero!r}")
    fields = zero_config().model_fields
    known = {*fields, *(field.alias for field in fields.values() if field.alias)}
    for key in zero:
        if key not in known:
            raise OptionError(f"DeepSpeed has no setting zero_optimization.{key}.{did_you_mean(key, known)}")
    if zero.get("stage", stage) != stage:
        raise OptionError(
            f"zero_optimization.stage={zero['stage']} in the DeepSpeed config contradicts the strategy's stage "
            f"{stage}: use strategy 'deepspeed_zero_{zero['stage']}'"
        )
    for key in ("offload_optimizer", "offload_param"):
        section = zero.get(key)
        if isinstance(section, dict) and section.get("device") == "nvme":
            raise OptionError(
                f"zero_optimization.{key}.device='nvme': DeepSpeed's offload to NVMe trains wrong results on several "
                "workers; offload to 'cpu'"
            )
    if zero.get("overlap_comm") and stage != 2:
        raise OptionError("zero_optimization.overlap_comm: DeepSpeed overlaps at stage 2 only where we accumulate")


def _check_values(settings: dict[str, Any]) -> None:
    """Let DeepSpeed parse the configuration, to check values."""
    from deepspeed import DeepSpeedConfig

    try:
        DeepSpeedConfig(copy.deepcopy(settings))
    except Exception as error:
        text = " ".join(str(error).split())
        raise OptionError(f"DeepSpeed refuses its config: {type(error).__name__}: {text}") from None


def _without_auto(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_auto(item) for key, item in value.items() if item != "auto"}
    return value
