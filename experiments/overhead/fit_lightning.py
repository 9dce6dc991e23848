"""One worker of `overhead` for Lightning's `Trainer.fit`: its epochs and those of a loop, interleaved in one job."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ...adapters import detect_launch
from ...plugins.lightning.package import trainer_part
from .models import Data, build_data, build_model, loss_fn
from .raw import RAW, check_same
from .shapes import LEARNING_RATE, MOMENTUM, SHAPES, Shape
from .turns import Turns

_LightningModule: Any = trainer_part("core").LightningModule
_Callback: Any = trainer_part("callbacks").Callback


def bench_fit(strategy_name: str, model_name: str, pairs: int, options: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the seconds per step of each pair of epochs on this worker; the pairs have at least `pairs` steps.

    They are `{"ours": [...], "raw": [...]}`: `fit`, and a loop: of our steps on the same engine or, for Lightning's own
    `ddp`, of raw DDP's. Both load the same tensors, in the same batches.

    Raises:
        RuntimeError: the two sides did not train the same model, so their times cannot be compared.
    """
    shape = SHAPES[model_name]
    turns = Turns(shape, pairs)
    worker = detect_launch().worker
    dataset = _BatchedTensors(*build_data(shape, turns.steps, worker.world_size))
    registered: Any = trainer_part("strategies").StrategyRegistry[strategy_name]
    own = strategy_name == "ddp"
    # Lightning's own sampler always shuffles training data.
    sampler: Any = DistributedSampler(dataset, worker.world_size, worker.rank, shuffle=False) if own else None
    loader = DataLoader(dataset, batch_size=shape.batch, sampler=sampler, collate_fn=_unchanged)
    loop = (_RawLoop if own else _OurLoop)(turns, shape, loader, strategy_name, options)
    trainer = trainer_part("trainer").Trainer(
        accelerator="cpu",
        devices=worker.local_world_size,
        num_nodes=worker.world_size // worker.local_world_size,
        strategy=registered["strategy"](**{**registered["init_params"], **options}),
        max_epochs=turns.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[loop],
    )
    trainer.fit(_Module(shape), loader)
    return turns.seconds()


class _Module(_LightningModule):  # type: ignore[misc]
    """The model as a LightningModule."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.net = build_model(shape)

    def training_step(self, batch: Data) -> torch.Tensor:
        inputs, targets = batch
        return mse_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


class _BatchedTensors(TensorDataset):
    """Takes a batch from the tensors at once, as our loop does; collating single samples takes longer."""

    def __getitems__(self, indices: list[int]) -> Data:
        rows = torch.tensor(indices)
        inputs, targets = self.tensors
        return inputs[rows], targets[rows]


def _unchanged(batch: Any) -> Any:
    return batch


class _LoopAfterEpoch(_Callback):  # type: ignore[misc]
    """Times each epoch of `fit`, and after it one of a loop, in a single call of `fit`."""

    def __init__(
        self, turns: Turns, shape: Shape, loader: DataLoader[Any], strategy_name: str, options: Mapping[str, Any]
    ) -> None:
        self._turns = turns
        self._shape = shape
        self._loader = loader
        self._named = (strategy_name, options)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._turns.begin()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._turns.end(self._train)

    @abstractmethod
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Create the loop, in the job that Lightning has joined."""

    @abstractmethod
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Raise `RuntimeError` if the loop trained another model than `fit`."""

    @abstractmethod
    def _train(self) -> None:
        """Train for an epoch."""


class _OurLoop(_LoopAfterEpoch):
    """A loop of our steps, on another engine of the strategy that the Trainer has joined."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        adapter = trainer.strategy.adapter
        with adapter.scope():
            model = build_model(self._shape)
            optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
            self._training = adapter.prepare(model, optimizer, loss_fn)
        self._batches = self._training.batches(
            self._loader.dataset, self._shape.batch * trainer.world_size, epochs=self._turns.epochs, shuffle=False
        )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        check_same(self._training.weights(), pl_module.net)

    def _train(self) -> None:
        for batch in itertools.islice(self._batches, self._turns.steps):
            self._training.step(batch)


class _RawLoop(_LoopAfterEpoch):
    """A loop of raw steps, in the process group that Lightning has joined."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        name, options = self._named
        self._model = build_model(self._shape)
        self._step = RAW[name](self._model, options)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        check_same(self._model.state_dict().items(), pl_module.net)

    def _train(self) -> None:
        for inputs, targets in self._loader:
            self._step(inputs, targets)
