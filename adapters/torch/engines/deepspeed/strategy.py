"""DeepSpeed ZeRO as a strategy: each stage, with and without offload, is a row of the registry."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist

from .... import entry
from ....capabilities import Capabilities, Shard
from ....errors import OptionError
from ....training import StepOptions, Training
from ...elementwise import refuse_unless_elementwise
from ...engine import Engine, model_of
from ...parameter_types import refuse_empty, refuse_scalars, refuse_sparse_gradients
from ...pending_reductions import GradientCounts
from ...process_group import ProcessGroupStrategy
from .compat import check, whole_numel
from .config import Precision, check_batch, check_prepared, full_config, read_config
from .fragments import DelegatingOptimizer
from .library import as_local_rank, import_deepspeed, join_deepspeed, leave_deepspeed, quiet
from .partitioned import partitioned_building, refuse_groups_by_shape
from .stages import ENGINES

_SHARDS: dict[int, tuple[Shard, ...]] = {
    1: ("optimizer",),
    2: ("optimizer", "gradients"),
    3: ("optimizer", "gradients", "parameters"),
}
_COMPUTES_IN = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DEEPSPEED_OPTIMIZERS = ("DeepSpeedCPUAdam", "FusedAdam")


class DeepSpeedStrategy(ProcessGroupStrategy):
    """DeepSpeed ZeRO (https://arxiv.org/abs/1910.02054) shards what a replica would hold.

    Stage 1 shards the optimizer's state, stage 2 gradients too, stage 3 parameters too: 8 + 12/N, 4 + 16/N and 20/N
    bytes per parameter on N workers, for Adam in float32. Use the lowest stage that fits into memory, or offload, which
    keeps the optimizer (and at stage 3 the parameters) in the CPU's memory and is slower. It trains float32 models,
    with elementwise optimizers of torch.optim.

    At stage 3 build model and optimizer inside scope(): parameters are partitioned when they are created. All workers
    must run the same modules in the same order, because parameters are gathered for each.

    Args:
        stage: of ZeRO, 1 to 3.
        offload: keep the optimizer's shards on the CPU, and at stage 3 the parameters' too.
        precision: "float32", or "bf16" or "fp16" (on CUDA) for the computation, with float32 for the update; floating
            point inputs are cast.
        config: DeepSpeed's own settings, a dict or the path of a JSON file; they override ours.
        find_unused_parameters: let workers use different parameters in a step; it costs a small all-reduce for each
            step, and for each micro-batch at stages 2 and 3. Without it they must use the same ones.
    """

    def __init__(
        self,
        stage: int,
        offload: bool = False,
        precision: Precision = "float32",
        config: Mapping[str, Any] | str | PathLike[str] | None = None,
        find_unused_parameters: bool = True,
        backend: str | None = None,
        timeout: float = 1800,
        device: str | None = None,
    ) -> None:
        super().__init__(backend, timeout, device)
        if stage not in ENGINES:
            raise OptionError(f"stage={stage!r} must be 1, 2 or 3")
        if precision not in _COMPUTES_IN:
            raise OptionError(f"precision={precision!r} must be one of {', '.join(_COMPUTES_IN)}")
        if precision == "fp16" and self.device.type == "cpu":
            raise OptionError("precision='fp16': DeepSpeed has no float16 on the CPU; use 'bf16' or 'float32'")
        self._stage = stage
        self._precision = precision
        self._find_unused_parameters = find_unused_parameters
        self._deepspeed = import_deepspeed(self.device)
        check(stage)
        self._user_config = read_config(config)
        self._config = full_config(self._user_config, stage, offload, precision)
        self._building = contextlib.ExitStack()
        self._variables = contextlib.ExitStack()
        self.capabilities = Capabilities(
            "torch",
            accelerators=frozenset({"cpu", "cuda"}),
            dtypes=frozenset({"float32"}),
            shards=frozenset(_SHARDS[stage]),
            accumulates_locally=stage == 1,
            exact=precision == "float32",
        )

    def wrap(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> Engine:
        refuse_unless_elementwise(optimizer, self.name, also=_DEEPSPEED_OPTIMIZERS)
        refuse_groups_by_shape(optimizer)
        model = model_of(module)
        refuse_scalars(model, self.name)
        refuse_empty(model, self.name, whole_numel)
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        other = {p.dtype for p in trained} - {torch.float32, _COMPUTES_IN[self._precision]}
        if other:
            found = str(other.pop()).removeprefix("torch.")
            raise OptionError(
                f"DeepSpeed does not train {found} parameters under precision={self._precision!r}: make the model "
                "float32, or use strategy 'fsdp'"
            )
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        looking = refuse_sparse_gradients(named, self.name)  # before DeepSpeed's own hooks
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
        delegating = DelegatingOptimizer(optimizer)
        with quiet(), as_local_rank(self.device):
            engine, *_ = self._deepspeed.initialize(
                model=module, optimizer=delegating, config=self._config, dist_init_required=False
            )
        name = f"zero{self.next_training()}"
        counts = GradientCounts(self, name) if self._find_unused_parameters else None
        gathering = list(engine.module.modules()) if self._stage == 3 else []
        passes = self.count_forward_passes(gathering, name)
        wrapped = ENGINES[self._stage](engine, optimizer, delegating, counts, passes)
        wrapped.looking = looking
        self.settle_before_leaving(wrapped.settle, keep=False)
        self.release_after_leaving(wrapped)
        return wrapped

    def check_batch(self, global_batch_size: int, accumulate: int) -> None:
        check_batch(self._user_config, global_batch_size, accumulate, self.worker.world_size)

    def _join(self) -> None:
        self._linear = torch.nn.functional.linear
        super()._join()
        # DeepSpeed reads it under any launcher; see `as_local_rank` too.
        self._variables.enter_context(entry.environment(LOCAL_RANK=str(self.worker.local_rank)))
        join_deepspeed(self._deepspeed)

    def _leave(self, failed: bool) -> None:
        self._building.close()
        # Stage 3 replaces it for the rest of the process (deepspeed/runtime/zero/partition_parameters.py).
        torch.nn.functional.linear = self._linear
        self._variables.close()
        super()._leave(failed)

    def _release_engines(self) -> None:
        super()._release_engines()  # DeepSpeed's engines ask for their rank while they are destroyed
        leave_deepspeed()

    @contextlib.contextmanager
    def _scope(self) -> Iterator[None]:
        with contextlib.ExitStack() as self._building:
            if self._stage == 3:
                self._building.enter_context(
                    partitioned_building(self._deepspeed, self._config, self.name, self.device)
                )
            yield

    def _prepare(
        self,
        model: Any,
        optimizer: Any,
        loss_fn: Callable[[Any, Any], Any],
        options: StepOptions,
    ) -> Training:
        check_prepared(self._user_config, options.accumulate, options.clip_norm)
        # The scope often stays open while training, but modules built from now on are not part of the model.
        self._building.close()
        return super()._prepare(model, optimizer, loss_fn, options)
