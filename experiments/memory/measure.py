"""One worker of `memory`: train a model in one setting, and measure memory, time, losses and weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...adapters import Batch, Callback, CallbackError, Training, create_strategy
from ...adapters.errors import OptionError
from ...adapters.registry import strategy_row
from ...plugins.gradient_checkpointing import GradientCheckpointing
from ..peak import peak_growth
from ..progress import tell
from .settings import BLOCKS, PLAIN, TORCH, Setting, setting
from .shapes import SHAPES

_COMPARED = 3  # steps: in the first one engines and budgets do their set-up, in the last one the peak is measured
_EPSILON = 2.0**-23  # of float32: what one update may be rounded differently by, relative to a weight
_ENGINE_OPTIONS: Mapping[str, Mapping[str, Any]] = {"fsdp": {"wrap": 10_000}}  # each block is gathered by itself


def measure(strategy_name: str, model_name: str, setting_name: str, steps: int, folder: Path) -> dict[str, Any]:
    """Return what this worker measured.

    "peak": growth of memory in bytes. "seconds": the median step. "losses": of the compared steps. "grad_diff": the
    largest distance by norm of a tensor of the state from that without checkpointing, relative to its change; `None`
    without a run to compare with. "activations": living bytes, `None` in TensorFlow and compiled models.
    "predicted_bytes", "budget": of the plan, in bytes, or `None`. "device". "native_ratio": of all blocks, see
    `_beside_native`. Only "refused", with the reason, if the budget does not fit.
    """
    framework, how, shape = strategy_row(strategy_name).framework, setting(setting_name), SHAPES[model_name]
    program = _program(framework)
    with create_strategy(strategy_name, **_ENGINE_OPTIONS.get(strategy_name, {})) as strategy, strategy.scope():
        workers = strategy.worker.world_size
        model = program.build_model(shape, how.native)
        if how.kind == TORCH:
            program.compile_within(model, how.share)
        checkpointing = None if how.options is None else GradientCheckpointing(**how.options)
        callbacks: list[Callback] = [] if checkpointing is None else [checkpointing]
        data = program.build_data(shape, shape.batch * workers * (_COMPARED + steps + 1))
        try:
            training = strategy.prepare(
                model, program.build_optimizer(model), program.build_loss(model_name), callbacks=callbacks
            )
            batches = iter(training.batches(data, shape.batch * workers))
            before = _state(training)
            losses = [float(training.step(next(batches))) for _ in range(_COMPARED - 1)]
        except (CallbackError, OptionError) as error:
            reason = error.__cause__ if isinstance(error, CallbackError) else error
            if how.share is None or not how.ours or not isinstance(reason, OptionError):
                raise
            return {"refused": str(reason)}
        reference = folder / f"{strategy_name}-{workers}-{model_name}.npz"
        batch = next(batches)
        peak = _peak(strategy.device, framework, lambda: losses.append(float(training.step(batch))))
        found: dict[str, Any] = {
            "peak": peak,
            "losses": losses,
            "grad_diff": _difference(reference, how, before, _state(training), strategy.worker.is_main),
            "seconds": median(_seconds(training, next(batches), number, steps) for number in range(steps)),
            "device": str(strategy.device).strip("/").partition(":")[0].lower(),
        }
        plan = None if checkpointing is None else checkpointing.plan
        found |= {name: None if plan is None else getattr(plan, name) for name in ("predicted_bytes", "budget")}
        batch = next(batches)
        found["activations"] = None if how.kind == TORCH else _activations(framework, model, training, batch)
        if how.name == BLOCKS:
            native = program.build_model(shape, native=True)
            beside = strategy.prepare(native, program.build_optimizer(native), program.build_loss(model_name))
            data = program.build_data(shape, shape.batch * workers)
            found["native_ratio"] = _beside_native(training, batch, beside, data, shape.batch * workers, steps)
        return found


def _program(framework: str) -> Any:
    if framework == "tensorflow":
        from . import models_keras

        return models_keras
    from . import models

    return models


def _peak(device: Any, framework: str, act: Callable[[], object]) -> int:
    """Return the growth of memory at its peak: of the allocator's on CUDA, else of resident memory."""
    if framework == "torch" and device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        act()
        peak: int = torch.cuda.max_memory_allocated(device) - before
        return peak
    return peak_growth(act)


def _activations(framework: str, model: Any, training: Training, batch: Batch) -> int | None:
    if framework == "tensorflow":  # a compiled step has them inside
        return None
    from ...plugins.conformance.torch.living import living_bytes

    return living_bytes(model, lambda: float(training.step(batch)))


def _seconds(training: Training, batch: Batch, number: int, steps: int) -> float:
    tell(f"step {number + 1} of {steps}")
    started = time.perf_counter()
    float(training.step(batch))
    return time.perf_counter() - started


def _beside_native(
    training: Training, batch: Batch, native: Training, data: Any, global_batch_size: int, steps: int
) -> float:
    """Return the median, over pairs of steps in this process, of our seconds by the native switch's.

    The difference is smaller than that between two processes.
    """
    (native_batch,) = native.batches(data, global_batch_size)
    sides = [(training, batch), (native, native_batch)]
    for _ in range(2):
        float(native.step(native_batch))
    ratios = []
    for number in range(2 * steps):
        order = sides if number % 2 else sides[::-1]
        seconds = {id(side): _seconds(side, one, number, 2 * steps) for side, one in order}
        ratios.append(seconds[id(training)] / seconds[id(native)])
    return median(ratios)


def _state(training: Training) -> dict[str, Any]:
    return {name: np.asarray(value).copy() for name, value in training.weights()}  # they may be the model's own


def _difference(
    file: Path, how: Setting, before: Mapping[str, Any], after: Mapping[str, Any], is_main: bool
) -> float | None:
    """Leave the state for the settings to come, or compare with what the run without checkpointing left."""
    if how.name == PLAIN:
        if is_main:
            np.savez(file, **{str(number): value for number, value in enumerate(after.values())})
        return 0.0
    if not file.exists():
        return None
    with np.load(file) as saved:
        pairs = zip(before.values(), after.values(), (saved[name] for name in saved.files), strict=True)
        return max(_distance(*states) for states in pairs)


def _distance(before: Any, after: Any, expected: Any) -> float:
    """Return the distance relative to the change, without what rounding explains; 0 is for equal states only."""
    before, after, expected = (np.asarray(state, np.float64) for state in (before, after, expected))
    difference, change, size = (
        float(np.linalg.norm(state)) for state in (after - expected, expected - before, expected)
    )
    unexplained = max(difference - _COMPARED * _EPSILON * size, difference * 1e-12)
    return unexplained / change if change else difference
