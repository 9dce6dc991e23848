"""The raw side of `overhead` in PyTorch: a hand-written training step, with the same options as ours.

It uses nothing of Farandole, and expects the engine to be initialized. The loss is not reduced over the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from ...adapters.torch.engines.deepspeed.compat import is_partitioned
from .shapes import LEARNING_RATE, MOMENTUM

Step = Callable[[Tensor, Tensor], None]


def _step(model: nn.Module, optimizer: Optimizer) -> Step:
    """Return the step of engines whose step is that of plain PyTorch."""

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        loss = mse_loss(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def local(model: nn.Module, options: Mapping[str, Any]) -> Step:
    """Plain PyTorch."""
    optimizer = SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    return _step(model, optimizer)


def ddp(model: nn.Module, options: Mapping[str, Any]) -> Step:
    """DistributedDataParallel, as in https://docs.pytorch.org/tutorials/intermediate/ddp_tutorial.html."""
    # Without DDP's own search for unused parameters, which our engine does not use either.
    replica = DistributedDataParallel(model, **{**options, "find_unused_parameters": False})
    optimizer = SGD(replica.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    return _step(replica, optimizer)


def horovod(model: nn.Module, options: Mapping[str, Any]) -> Step:
    """Horovod, as in https://horovod.readthedocs.io/en/stable/pytorch.html."""
    import horovod.torch as hvd

    optimizer = SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), **options)
    return _step(model, optimizer)


def fsdp(model: nn.Module, options: Mapping[str, Any]) -> Step:
    """FSDP2, as in https://docs.pytorch.org/tutorials/intermediate/FSDP_tutorial.html."""
    from torch.distributed.fsdp import fully_shard

    assert isinstance(model, nn.Sequential)
    for layer in model:
        if sum(parameter.numel() for parameter in layer.parameters()) >= options["wrap"]:
            fully_shard(layer)
    fully_shard(model)
    optimizer = SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    return _step(model, optimizer)


def deepspeed(model: nn.Module, options: Mapping[str, Any]) -> Step:
    """DeepSpeed, as in https://www.deepspeed.ai/getting-started/, without its default clipping."""
    import deepspeed as engine_library

    engine, *_ = engine_library.initialize(
        model=model,
        optimizer=SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
            **options["config"],
        },
    )

    def step(inputs: Tensor, targets: Tensor) -> None:
        loss = mse_loss(engine(inputs), targets)
        engine.backward(loss)
        engine.step()

    return step


def whole(parameter: nn.Parameter) -> Tensor:
    """Return a whole parameter of a raw model, whether the engine sharded it or not; all workers call it."""
    if is_partitioned(parameter):
        import deepspeed as engine_library

        with engine_library.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    gather: Callable[[], Tensor] = getattr(parameter, "full_tensor", parameter.detach)
    return gather()


def check_same(weights: Iterable[tuple[str, Tensor]], model: nn.Module) -> None:
    """Raise `RuntimeError` if a model has other weights: the times cannot be compared."""
    for (name, weight), parameter in zip(weights, model.parameters(), strict=True):
        other = whole(parameter).cpu()
        difference = float((weight - other).norm() / other.norm())
        if not difference < 1e-4:
            raise RuntimeError(f"the two models are not the same: {name!r} differs by {difference:.1e} of its norm")


RAW: dict[str, Callable[[nn.Module, Mapping[str, Any]], Step]] = {
    "local": local,
    "ddp": ddp,
    "fsdp": fsdp,
    "horovod": horovod,
    **{f"deepspeed_zero_{kind}": deepspeed for kind in ("1", "2", "3", "2_offload", "3_offload")},
}
