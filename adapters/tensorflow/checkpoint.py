"""Checkpoints of Keras models: weights and optimizer variables as ranges of raw bytes, and a few numbers beside them.

A variable's name in a checkpoint is its position and its own name ("3.kernel"): Keras numbers layers anew in every
process ("dense_7"), so the same model's paths differ from run to run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ..checkpoint.contents import Contents
from ..checkpoint.folder import manifest_to_load
from ..checkpoint.manifest import Manifest, Part, Range, Ranges, TensorInfo, write_part
from ..checkpoint.ranges import split_evenly
from ..checkpoint.save import Save
from ..checkpoint.storage import FileInfo, Storage
from ..checkpoint.together import together
from ..errors import CheckpointError
from ..progress import Progress
from ..strategy import Strategy
from .library import random_seed_generators

if TYPE_CHECKING:
    from .training import TensorFlowTraining

OBJECTS = "objects.json"
Array = np.ndarray[Any, Any]


def named_weights(model: Any) -> dict[str, Any]:
    """Return a model's variables by their names in a checkpoint.

    The seeds of random layers are left out: each step sets them, differently on every worker.
    """
    seeds = {id(generator.state) for generator in random_seed_generators(model)}
    weights = [variable for variable in model.variables if id(variable) not in seeds]
    return {f"{number}.{variable.name}": variable for number, variable in enumerate(weights)}


@dataclass(frozen=True)
class State:
    """The variables of a training.

    tensors: by their names in the manifest, `model/<name>` and `optimizer/<parameter>/<slot>`.
    numbers: the optimizer's other variables (iterations, learning rate, loss scale), by position and name.
    """

    tensors: dict[str, Any]
    numbers: dict[str, Any]


def state_of(model: Any, optimizer: Any) -> State:
    """Return the variables that make up a training's state."""
    weights = named_weights(model)
    tensors = {f"model/{name}": variable for name, variable in weights.items()}
    prefixes = {variable.path.replace("/", "_") + "_": name for name, variable in weights.items()}
    numbers: dict[str, Any] = {}
    for number, variable in enumerate(optimizer.variables):
        fitting = [prefix for prefix in prefixes if variable.name.startswith(prefix)]
        if fitting:  # Keras calls a slot <path of the weight>_<slot>; if two paths match, take the longer
            prefix = max(fitting, key=len)
            tensors[f"optimizer/{prefixes[prefix]}/{variable.name.removeprefix(prefix)}"] = variable
        else:
            numbers[f"{number}.{variable.name}"] = variable
    return State(tensors, numbers)


class TensorFlowSave(Save):
    """One save of a `TensorFlowTraining`. All workers hold replicas, and each writes a part of equal size."""

    framework = "tensorflow"

    def __init__(self, storage: Storage, training: TensorFlowTraining, strategy: Strategy, keep: int | None) -> None:
        super().__init__(storage, strategy, keep)
        self._training = training
        self._state = state_of(training.model, training.optimizer)
        self._slices: list[tuple[str, tuple[int, ...], int, Array]] = []
        self._objects = b""

    def begin(self, progress: Progress, extras: Mapping[str, Any] | None) -> tuple[Manifest | None, Any]:
        if not self._worker.is_main:
            return None, None
        callbacks = self._training.callbacks_state()
        optimizer, attempt = type(self._training.optimizer).__name__, self._training.attempt
        return self.new_manifest(progress, extras, optimizer, "none", {}, callbacks, attempt), None

    def stage(self, found: list[Any], copy: bool) -> None:
        worker, tensors = self._worker, self._state.tensors
        sizes = [(int(np.prod(variable.shape)), _dtype(variable.dtype).itemsize) for variable in tensors.values()]
        for (name, variable), ends in zip(tensors.items(), split_evenly(sizes, worker.world_size), strict=True):
            start, end = ends[worker.rank], ends[worker.rank + 1]
            if end > start or (worker.is_main and 0 in variable.shape):
                # Copy: a step in place may change the memory behind `numpy()`.
                values = np.array(variable.numpy()).reshape(-1)[start:end]
                self._slices.append((name, tuple(variable.shape), start, values))
        if worker.is_main:
            numbers = {name: variable.numpy().item() for name, variable in self._state.numbers.items()}
            self._objects = json.dumps({"numbers": numbers}).encode()
            self._storage.folder(self.manifest.data).make()

    def write(self) -> None:
        folder, rank = self._storage.folder(self.manifest.data), self._worker.rank
        tensors: dict[str, TensorInfo] = {}
        ranges: Ranges = {}
        files: dict[str, FileInfo] = {}
        if self._worker.is_main:
            with folder.create(OBJECTS) as stream:
                stream.write(self._objects)
            files[OBJECTS] = stream.info
        file = f"tensors-{rank}.bin"
        with folder.create(file) as stream:
            for name, shape, start, values in self._slices:
                tensors[name] = TensorInfo(shape, values.dtype.name)
                ranges[name] = [Range(start, values.size, file, stream.tell(), values.nbytes)]
                stream.write(values.view(np.uint8))
        files[file] = stream.info
        self._slices = []
        write_part(self._storage, self.manifest.data, rank, Part(tensors, ranges, files))


class TensorFlowContents(Contents):
    """A whole checkpoint of TensorFlow's, read by one process."""

    framework = "tensorflow"

    def numbers(self) -> dict[str, Any]:
        """Return the optimizer's variables that belong to no single weight, by position and name."""
        try:
            numbers: dict[str, Any] = json.loads(self.folder.read(OBJECTS))["numbers"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.folder.place(OBJECTS)} is damaged: {error}") from None
        return numbers

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, Array]]:
        """Yield whole tensors, one at a time."""
        for name in names:
            info = self.tensors[name]
            values = np.empty(info.numel, _dtype(info.dtype))
            for stored in self.ranges.get(name, []):
                with self.folder.open(stored.file) as file:
                    file.seek(stored.offset)
                    content = file.read(stored.bytes)
                values[stored.start : stored.start + stored.length] = np.frombuffer(content, values.dtype)
            yield name, values.reshape(info.shape)


def load(strategy: Strategy, path: str | PathLike[str], training: TensorFlowTraining) -> Progress:
    """Read a checkpoint, on all workers together; see `Training.load`."""
    failure, worker = f"cannot load {path}", strategy.worker
    manifest = together(strategy, lambda: manifest_to_load(Storage(path)) if worker.is_main else None, failure)[0]
    state = state_of(training.model, training.optimizer)
    found: list[TensorFlowContents] = []

    def read_and_check() -> None:
        contents = TensorFlowContents(path, manifest)
        contents.verify(worker.rank, worker.world_size)
        _check_fits(state, contents, type(training.optimizer).__name__)
        found.append(contents)

    def restore() -> None:
        contents = found[0]
        for name, values in contents.arrays(state.tensors):
            state.tensors[name].assign(values)
        for name, value in contents.numbers().items():
            state.numbers[name].assign(value)

    together(strategy, read_and_check, failure)
    together(strategy, restore, failure)
    return training.restore(found[0].manifest)


def _check_fits(state: State, contents: TensorFlowContents, optimizer: str) -> None:
    saved = contents.manifest.optimizer
    if saved != optimizer:
        raise CheckpointError(f"its optimizer is {saved}, but this training uses {optimizer}")
    for name in sorted(state.tensors.keys() | contents.tensors.keys()):
        what = f"{name.partition('/')[2]!r} of the {name.partition('/')[0]}"
        if name not in contents.tensors:
            raise CheckpointError(f"{what} is not in the checkpoint")
        if name not in state.tensors:
            raise CheckpointError(f"{what} is in the checkpoint only")
        shape, info = tuple(state.tensors[name].shape), contents.tensors[name]
        if shape != info.shape:
            raise CheckpointError(f"{what} has shape {info.shape} in the checkpoint, {shape} in this training")
    if state.numbers.keys() != contents.numbers().keys():
        differing = sorted(state.numbers.keys() ^ contents.numbers().keys())
        raise CheckpointError(f"the optimizer's {differing[0]!r} is in the checkpoint or here only")


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
