"""Horovod for PyTorch (https://arxiv.org/abs/1802.05799)."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore

from ...capabilities import Capabilities
from ...errors import OptionError
from ...horovod.compat import DistributedOptimizerView, check_torch, internal_error
from ...horovod.job import HorovodJob
from ...horovod.library import accelerators, import_horovod, require_nccl
from ...horovod.rendezvous import MEETING
from ...lost_worker import horovod_lost_a_peer
from ...strategy import ReduceOp
from ..device import gpu_identity, refuse_nccl_beside, refuse_shared_gpus
from ..engine import Engine
from ..no_gradient import NoGradient, Sparse
from ..objects import pack, unpack
from ..pending_reductions import GradientCounts
from ..rendezvous import open_store
from ..strategy import Finish, TorchStrategy

hvd = import_horovod("torch", "PyTorch", torch.__version__)
check_torch()

_COMPRESSIONS = ("none", "fp16")
_OPS = ("average", "adasum")

_BYTES_AT_ONCE = 1 << 30


class HorovodStrategy(TorchStrategy):
    """Every worker has the whole model, and a Horovod thread averages gradients while backward runs.

    Use it if your cluster runs Horovod or MPI already, or for Adasum. Model, gradients and optimizer must fit into
    each worker's memory. Horovod is compiled against the installed PyTorch: `farandole horovod install`.

    Args:
        compression: "fp16" halves the traffic, lossily. (Horovod's last release cannot reduce bfloat16.)
        op: "average", or "adasum" (https://arxiv.org/abs/2006.02924), which weights gradients by their agreement and so
            trains another curve; it needs a Horovod built with MPI.
        num_groups: reduce gradients in this many groups; 0 lets Horovod fuse them as they come.
    """

    def __init__(
        self,
        compression: Literal["none", "fp16"] = "none",
        op: Literal["average", "adasum"] = "average",
        num_groups: int = 0,
        device: str | None = None,
    ) -> None:
        super().__init__(device)
        if compression not in _COMPRESSIONS:
            raise OptionError(
                f"compression={compression!r} must be one of {', '.join(_COMPRESSIONS)}: Horovod's last release cannot "
                "all-reduce bfloat16, but strategy 'ddp' with comm_hook='bf16' can"
            )
        if op not in _OPS:
            raise OptionError(f"op={op!r} must be one of {', '.join(_OPS)}")
        if op == "adasum" and not hvd.mpi_built():
            raise OptionError(
                "op='adasum' needs a Horovod built with MPI, and this one has none: install an MPI compiler "
                "(apt-get install libopenmpi-dev), then run: farandole horovod install --force"
            )
        if num_groups < 0:
            raise OptionError(f"num_groups={num_groups} must not be negative")
        if self.device.type == "cuda":
            require_nccl(hvd)
        self._compression = compression
        self._adasum = op == "adasum"
        self._num_groups = num_groups
        self._modules = itertools.count()
        self._job = HorovodJob(hvd, self.launch)
        self.capabilities = Capabilities(
            "torch",
            accelerators=accelerators(hvd),
            # Elastic Horovod lets survivors continue in their processes (horovod/common/elastic.py).
            survives_failure=True,
            exact=compression == "none" and op == "average",
        )

    def wrap(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> Engine:
        names = f"module{next(self._modules)}"
        _broadcast(module, names)
        compression = hvd.Compression.fp16 if self._compression == "fp16" else hvd.Compression.none
        engine = _HorovodEngine(
            module,
            optimizer,
            names,
            GradientCounts(self, names),
            compression=compression,
            backward_passes_per_step=accumulate,
            op=hvd.Adasum if self._adasum else hvd.Average,
            groups=self._num_groups or None,
        )
        self.settle_before_leaving(engine.settle, keep=False)
        self.release_after_leaving(engine)
        return engine

    def start_all_reduce(self, tensor: torch.Tensor, op: ReduceOp, name: str) -> Finish:
        operation = {"sum": hvd.Sum, "max": hvd.Max, "min": hvd.Min}[op]
        # Without a name Horovod invents a new one each time, and cannot use its cache of negotiations.
        handle = hvd.allreduce_async_(tensor, op=operation, name=f"farandole.{name}")

        def finish() -> torch.Tensor:
            hvd.synchronize(handle)
            return tensor

        return finish

    def _broadcast_address(self, address: str | None) -> str:
        """Give all workers rank 0's address, through the launcher's store, once all are here."""
        worker = self.worker
        store = PrefixStore("horovod", open_store(self.launch, timedelta(seconds=MEETING)))
        store.set(str(worker.rank), address or "")
        store.wait([str(rank) for rank in range(worker.world_size)])
        return store.get("0").decode()

    def _join(self) -> None:
        super()._join()
        if self.device.type == "cuda" and dist.is_initialized():
            refuse_nccl_beside(dist.get_backend_config())
        self._job.join(self._broadcast_address, self._barrier)
        if self.device.type == "cuda":
            refuse_shared_gpus(self._gather(gpu_identity(self.device)))

    def _lost_a_worker(self, error: BaseException) -> bool:
        lost = isinstance(error, internal_error()) and horovod_lost_a_peer(str(error))
        return lost or super()._lost_a_worker(error)

    def _leave(self, failed: bool) -> None:
        super()._leave(failed)
        self._job.leave(failed)

    # Horovod's thread writes to the tensors, which is not allowed for those created in inference mode.

    @torch.inference_mode(False)
    def _reduce(self, value: Any, op: ReduceOp) -> Any:
        return super()._reduce(value, op)

    @torch.inference_mode(False)
    def _gather(self, value: Any) -> list[Any]:
        return [unpack(data, self.device) for data in self._job.gather(pack(value))]

    @torch.inference_mode(False)
    def _broadcast(self, value: Any, root: int) -> Any:
        is_root = self.worker.rank == root
        data = self._job.broadcast(pack(value) if is_root else None, root)
        return value if is_root else unpack(data, self.device)

    def _barrier(self) -> None:
        hvd.barrier()


class _HorovodEngine(Engine):
    """Horovod's DistributedOptimizer reduces the gradients; the user's own optimizer applies them.

    Only its hooks and `synchronize()` are needed, so it wraps an SGD: schedulers and the user hold the user's
    optimizer, with its state.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        names: str,
        counts: GradientCounts,
        op: Any,
        **options: Any,
    ) -> None:
        super().__init__(module, optimizer)
        self._names = names
        self._grouped = options["groups"] is not None
        self._adasum = op == hvd.Adasum
        self._counts = counts
        self._options = {"op": op, **options}
        self._distribute()

    def _distribute(self) -> None:
        """Let Horovod reduce the gradients of the optimizer's parameters."""
        updated = set(self.parameters)
        trained = [(name, p) for name, p in self.module.named_parameters() if p in updated and p.requires_grad]
        self._parameter_names = [name for name, _ in trained]
        self._trained = [parameter for _, parameter in trained]
        named = [(f"{self._names}.{name}", parameter) for name, parameter in trained]
        inner = self.optimizer if self._adasum else torch.optim.SGD(self._trained, lr=0.0)
        self._sparse = Sparse(self.module)
        self._no_gradient = NoGradient(self._trained, self._sparse)
        self._distributed = hvd.DistributedOptimizer(inner, named_parameters=named, **self._options)
        if self._adasum:
            self.optimizer = self._distributed
        self.zero_grad()

    def update_groups(self) -> None:
        if self._adasum:
            raise OptionError(
                "parameters were given to the optimizer after prepare(), and op='adasum' would not reduce their "
                "updates: give them to it before, with a learning rate of 0 in their own group"
            )
        super().update_groups()
        self.release()
        self._distribute()

    def reduce_gradients(self) -> None:
        if self._adasum:
            return
        zeros = self._no_gradient.zeros
        if hvd.size() == 1:
            for parameter in zeros:
                parameter.grad = None
            return
        # Horovod reduces zeros for a parameter without a gradient, and the optimizer would decay it.
        present = [parameter.grad is not None and parameter not in zeros for parameter in self._trained]
        self._counts.start(present)
        if self._grouped:
            self._refuse_partial_groups(self._counts.read())
        lacking = [] if all(present) else [p for p in self._trained if p.grad is None and p in self._sparse]
        for parameter in lacking:
            # Horovod would reduce dense zeros, and wait for the workers that gather sparse gradients.
            parameter.grad = Sparse.zeros(parameter)
        self._distributed.synchronize()
        if not all(present):
            for parameter, count in zip(self._trained, self._counts.read(), strict=True):
                if count == 0:
                    parameter.grad = None

    def settle(self) -> None:
        """Wait for counts that this worker did not need."""
        self._counts.settle()

    def clip_grad_norm(self, max_norm: float) -> None:
        self._require_gradients("clip_norm")
        super().clip_grad_norm(max_norm)

    def measure_grad_norm(self) -> None:
        self._require_gradients("grad_norm")
        super().measure_grad_norm()

    def zero_grad(self) -> None:
        for parameter in self._trained:  # Horovod's optimizer for Adasum cannot set them to None
            parameter.grad = None
        self._no_gradient.zeros.clear()

    def update(self) -> None:
        if self._adasum:
            self._distributed.step()
        else:
            self.optimizer.step()

    def release(self) -> None:
        # Horovod keeps no handles of its hooks, but a hook that never reaches its last backward pass reduces nothing.
        self._no_gradient.release()
        DistributedOptimizerView(self._distributed).set_passes_per_step(sys.maxsize)

    def _require_gradients(self, asked: str) -> None:
        if self._adasum:
            raise OptionError(
                f"{asked} sees the reduced gradient, and op='adasum' reduces updates: leave one of them out"
            )

    def _refuse_partial_groups(self, counts: list[float]) -> None:
        """Refuse groups if workers lack different gradients: they would wait for each other for ever."""
        partial = [name for name, count in zip(self._parameter_names, counts, strict=True) if 0 < count < hvd.size()]
        if partial:
            raise OptionError(
                f"num_groups needs each parameter used by all workers or by none, but some workers did not use "
                f"{partial[0]!r} in this step: leave num_groups out"
            )


def _broadcast(module: torch.nn.Module, names: str) -> None:
    """Give every worker rank 0's parameters and buffers."""
    tensors = [
        (f"{names}.{name}", tensor.data) for name, tensor in (*module.named_parameters(), *module.named_buffers())
    ]
    together = [chunk for name, tensor in tensors if tensor.is_contiguous() for chunk in _as_bytes(name, tensor)]
    hvd.broadcast_parameters(together, root_rank=0)
    for name, tensor in tensors:
        if not tensor.is_contiguous():
            copy = tensor.contiguous()
            hvd.broadcast_parameters([*_as_bytes(name, copy)], root_rank=0)
            tensor.copy_(copy)


def _as_bytes(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a contiguous tensor's memory: Horovod does not support all types, and counts elements in 32 bits."""
    for number, chunk in enumerate(torch.split(tensor.reshape(-1).view(torch.uint8), _BYTES_AT_ONCE)):
        yield f"{name}.{number}", chunk
