"""The files of a DeepSpeed checkpoint, read and joined with DeepSpeed's own tool `zero_to_fp32`.

The tool joins float32 weights. Optimizer slots have the same order, so we pass them to it in place of weights.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...adapters.errors import CheckpointError
from ...adapters.torch.engines.deepspeed.compat import zero_to_fp32
from ...adapters.torch.engines.deepspeed.library import import_deepspeed
from .to_deepspeed import CLIENT_STATE

T = TypeVar("T")

Flat = list[torch.Tensor]
"""Weights or one slot on one worker: a flat tensor for each group, or sub-group at stage 3."""


class ZeroFiles:
    """A folder of files that ZeRO wrote; reading it unpickles them.

    others: entries of the module's state that are no tensors.
    frozen: names of parameters that are not in the optimizer's partitions.
    aliases: other names of tied parameters, with their first name.
    scheduler: its state, or `None`.
    client_state: what `convert --to deepspeed` added; empty in other checkpoints.
    steps: DeepSpeed's number of updates.

    Raises:
        CheckpointError: files are missing or damaged, or of a kind that cannot be converted.
    """

    def __init__(self, folder: Path) -> None:
        import_deepspeed(torch.device("cpu"))
        self._folder = folder
        self._tool = zero_to_fp32()
        self._guard(self._load)

    def _load(self) -> None:
        if next(self._folder.glob("*mp_rank_01*"), None) is not None:
            raise CheckpointError(f"{self._folder} is of a model-parallel run, which cannot be converted")
        model_files = self._tool.find_model_files(str(self._folder))
        optimizer_files = self._tool.find_optimizer_files(str(self._folder))
        self._models = self._tool.read_models(model_files)
        self._stage, self._workers, self._weights, self._paddings = self._tool.read_optimizers(
            optimizer_files, str(self._folder)
        )
        ranks = [self._open(file)["optimizer_state_dict"] for file in optimizer_files]
        key = "optimizer_state_dict" if self._stage == 3 else "base_optimizer_state"
        self._optimizers = [rank[key] for rank in ranks]
        if not all(isinstance(optimizer, dict) for optimizer in self._optimizers):
            raise CheckpointError(f"{self._folder} was saved with elastic_checkpoint: save it without")
        self._group_paddings = [rank.get("group_paddings") for rank in ranks]
        self._model = self._open(model_files[0])
        zero = (self._model.get("ds_config") or {}).get("zero_optimization", {})
        if zero.get("round_robin_gradients"):
            raise CheckpointError(f"{self._folder} was saved with round_robin_gradients, which reorders parameters")
        self.aliases = dict(self._models[0].shared_params)
        self.scheduler = self._model["lr_scheduler"]
        self.client_state = self._model.get(CLIENT_STATE, {})
        self.steps = int(self._model["global_steps"])
        self.others = {n: value for n, value in self._model["module"].items() if not isinstance(value, torch.Tensor)}

    @cached_property
    def frozen(self) -> list[str]:
        trained = {name for part in self._parts for name in part}
        buffers = set(self._model["buffer_names"])
        module = {name for name, value in self._model["module"].items() if isinstance(value, torch.Tensor)}
        return sorted(module - trained - buffers - self.aliases.keys())

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups: their settings and, as "params", the names of their parameters."""
        described: list[dict[str, Any]] = self._optimizers[0]["param_groups"]
        return [
            {**group, "params": [name for number in group["params"] for name in self._parts[number]]}
            for group in described
        ]

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield buffers and whole parameters, in float32, and frozen ones as they are."""
        found = self._join(self._weights, self._models)
        module = self._model["module"]
        for name in self.frozen:  # zero_to_fp32 omits them at stage 1
            found.setdefault(name, module[name])
        for name in self._model["buffer_names"]:  # it converts them to float32
            found[name] = module[name]
        yield from self._whole(found)

    def flat_slots(self) -> list[str]:
        """Return the names of slots with a value for each element of a parameter."""
        state = self._optimizers[0]["state"]
        return sorted({slot for slots in state.values() for slot, value in slots.items() if _is_flat(value)})

    def slot(self, slot: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield a slot of all parameters, each in its parameter's shape."""
        flats = [
            [self._slot(rank, number, slot) for number in range(len(self._parts))] for rank in range(self._workers)
        ]
        models = [replace(model, buffers={}, shared_params=[]) for model in self._models]
        yield from self._whole(self._join(flats, models, exclude_frozen=True))

    def scalar_slots(self) -> dict[str, dict[str, Any]]:
        """Return the values that the optimizer keeps once per group, for each of its parameters."""
        state = self._optimizers[0]["state"]
        return {
            name: {slot: value for slot, value in state.get(number, {}).items() if not _is_flat(value)}
            for number, part in enumerate(self._parts)
            for name in part
            if state.get(number)
        }

    @property
    def _parts(self) -> list[dict[str, torch.Size]]:
        """Trained parameters with their shapes: of each group, or of each sub-group at stage 3."""
        parts: list[dict[str, torch.Size]] = self._models[0].param_shapes
        return parts

    def _slot(self, rank: int, number: int, slot: str) -> torch.Tensor:
        weights: torch.Tensor = self._weights[rank][number]
        value = self._optimizers[rank]["state"].get(number, {}).get(slot)
        if value is None:
            return torch.zeros_like(weights)
        flat: torch.Tensor = value[: weights.numel()]  # weights are without the padding at their end
        return flat

    def _join(self, flats: list[Flat], models: list[Any], exclude_frozen: bool = False) -> dict[str, Any]:
        def join() -> dict[str, Any]:
            joined: dict[str, Any] = (
                self._tool.join_zero_3(self._workers, flats, models, exclude_frozen)
                if self._stage == 3
                else self._tool.join_zero_12(self._workers, flats, models, exclude_frozen, self._paddings)
            )
            return joined

        return self._guard(join)

    def _whole(self, found: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in found.items():
            yield name, self._guard(value.contiguous)  # at stage 3 this joins it

    def _open(self, file: str) -> dict[str, Any]:
        opened: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
        return opened

    def _guard(self, act: Callable[[], T]) -> T:
        """Run `act`, which reads the files, and hide DeepSpeed's progress bars and reports."""
        quiet = io.StringIO()
        try:
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                return act()
        except CheckpointError:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise CheckpointError(f"{self._folder} could not be read: {type(error).__name__}: {reason}") from None


def _is_flat(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 1
