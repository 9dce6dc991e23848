"""Undocumented names of Lightning: each stands here once, behind one of our functions or classes.

Names of modules and classes are checked on import; those that only objects have, when a `View` of one is created. Files
are those of Lightning 2.6, below `lightning/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from packaging.version import Version

from ...adapters.undocumented import Library, Method, Name, View
from .package import FABRIC, NAME, TRAINER, VERSION, fabric_part, trainer_part

LIGHTNING = Library("Lightning", "lightning", ("2.5.0", "2.6.6"), "pip install lightning==2.6.6")
if LIGHTNING.module != NAME:  # the older import
    LIGHTNING = replace(LIGHTNING, module=NAME, install=LIGHTNING.install.replace("lightning", NAME.replace("_", "-")))

_load = LIGHTNING.load


# Data (fabric/utilities/data.py; pytorch: utilities/data.py, overrides/distributed.py, loops/fit_loop.py).

_seed_processes = _load(f"{FABRIC}.utilities.data", "_auto_add_worker_init_fn")
_constructor_arguments = _load(f"{TRAINER}.utilities.data", "_get_dataloader_init_args_and_kwargs")
_construct_like = _load(f"{TRAINER}.utilities.data", "_reinstantiate_wrapped_cls")
_NotingIndices = _load(f"{TRAINER}.overrides.distributed", "_IndexBatchSamplerWrapper")


class _Noting(View):
    library = LIGHTNING
    noted = Name("_batch_sampler")


class _FitLoop(View):
    library = LIGHTNING
    load_states = Method("_load_combined_loader_states")


class _PredictLoop(View):
    library = LIGHTNING
    source = Name("_data_source")


class _Source(View):
    """Where a loop gets its loaders (pytorch/trainer/connectors/data_connector.py)."""

    library = LIGHTNING
    loaders = Name("instance")


class _Connector(View):
    """What the Trainer keeps of its arguments (pytorch/trainer/connectors/accelerator_connector.py)."""

    library = LIGHTNING
    samples = Name("use_distributed_sampler")


class _Trainer(View):
    """`Trainer` (pytorch/trainer/trainer.py)."""

    library = LIGHTNING
    connector = Name("_accelerator_connector")
    signals = Name("_signal_connector")


class _Logging(View):
    library = LIGHTNING
    results = Method("_results")


_FitLoop.check_class(_load(f"{TRAINER}.loops.fit_loop", "_FitLoop"))
_Logging.check_class(trainer_part("trainer.trainer").Trainer)


def seed_loader_processes(loader: Any, rank: int) -> None:
    """Seed the processes of a DataLoader, after `seed_everything(workers=True)`."""
    _seed_processes(loader, rank)


def constructor_arguments(loader: Any, sampler: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a DataLoader's constructor arguments, for one of its class with another sampler."""
    arguments, keywords = _constructor_arguments(loader, sampler)
    return arguments, keywords


def construct_like(loader: Any, **keywords: Any) -> Any:
    """Construct a DataLoader of the class of `loader`, with the attributes that were set since."""
    return _construct_like(loader, **keywords)


def noting_indices(batch_sampler: Any) -> Any:
    """Wrap a batch sampler so that Lightning's prediction writers get the indices of predicted samples."""
    return _NotingIndices(batch_sampler)


def without_notes(batch_sampler: Any) -> Any:
    """Return the batch sampler that Lightning, or `noting_indices`, wrapped."""
    return _Noting(batch_sampler).noted if isinstance(batch_sampler, _NotingIndices) else batch_sampler


def take_over_sampling(trainer: Any) -> bool:
    """Keep a Trainer from inserting its own samplers into loaders; return whether it would have.

    It would do so before it calls the strategy, and hide the user's sampler.
    """
    connector = _Connector(_Trainer(trainer).connector)
    would = bool(connector.samples)
    connector.samples = False
    return would


def loaders_to_predict(trainer: Any) -> _Source:
    """Return a view whose `loaders` are those that were given to `Trainer.predict`."""
    return _Source(_PredictLoop(trainer.predict_loop).source)


def load_loader_states(fit_loop: Any) -> None:
    """Load the training loaders' states from a checkpoint, unless Lightning has."""
    _FitLoop(fit_loop).load_states()


def log_without_weight(trainer: Any) -> None:
    """Leave what this step logs out of the epoch's means."""
    results = _Logging(trainer).results
    if results is not None:
        results.batch_size = 0


# SIGTERM (pytorch/trainer/connectors/signal_connector.py, pytorch/loops/training_epoch_loop.py).


class _Signals(View):
    library = LIGHTNING
    handler = Method("_sigterm_notifier_fn")
    received = Name("received_sigterm")


class _EpochLoop(View):
    library = LIGHTNING
    agree = Method("_broadcast_sigterm_tensor")


_Signals.check_class(_load(f"{TRAINER}.trainer.connectors.signal_connector", "_SignalConnector"))
# Since 2.5.5 workers agree on it, as `sigterm` says (Lightning's pull request 20825).
_AGREES = VERSION is None or Version("2.5.5") <= VERSION
if _AGREES:
    _EpochLoop.check_class(_load(f"{TRAINER}.loops.training_epoch_loop", "_TrainingEpochLoop"))


def take_over_sigterm(trainer: Any, note: Callable[[int, Any], None], look: Callable[[], None]) -> None:
    """Make a Trainer call `note` on SIGTERM, and `look` before each batch; an older Lightning just ends."""
    if _AGREES:
        _EpochLoop(trainer.fit_loop.epoch_loop).agree = look
        _Signals(_Trainer(trainer).signals).handler = note


def note_sigterm(trainer: Any) -> None:
    """Make a Trainer end as after SIGTERM."""
    _Signals(_Trainer(trainer).signals).received = True


# Strategies (pytorch/strategies/strategy.py and parallel.py, fabric/strategies/strategy.py and deepspeed.py).

_Redirection: Any = _load(f"{TRAINER}.strategies.strategy", "_ForwardRedirection")
_SyncControl: Any = _load(f"{FABRIC}.strategies.strategy", "_BackwardSyncControl")
_after_closure = LIGHTNING.get(trainer_part("plugins.precision").Precision, "_after_closure")


class _Launched(View):
    library = LIGHTNING
    configure = Method("_configure_launcher")


class _TrainersStrategy(View):
    library = LIGHTNING
    redirection = Name("_forward_redirection")
    layer_sync = Name("_layer_sync")


class _FabricsStrategy(View):
    library = LIGHTNING
    sync_control = Name("_backward_sync_control")


for _part in (trainer_part, fabric_part):
    _Launched.check_class(_part("strategies").Strategy)


class Launching:
    """A mixin before a Lightning strategy class, the Trainer's or Fabric's."""

    def before_launch(self) -> None:
        """Called when the strategy is configured, before workers start."""

    def _configure_launcher(self) -> None:
        self.before_launch()
        super()._configure_launcher()  # type: ignore[misc]


def layer_sync(strategy: Any) -> Any:
    """Return the plugin for `sync_batchnorm=True`; `None` without."""
    return _TrainersStrategy(strategy).layer_sync


def before_update(precision: Any, module: Any, optimizer: Any) -> None:
    """Call Lightning's hooks between backward and the update, and clip gradients."""
    _after_closure(precision, module, optimizer)


def run_steps_in(strategy: Any, forward: Callable[..., Any]) -> None:
    """Make a Trainer's strategy run a step of the module inside `forward`, which calls the module."""
    _TrainersStrategy(strategy).redirection = _Inside(forward)


class _Inside(_Redirection):  # type: ignore[misc]
    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward

    def __call__(self, wrapper_module: Any, original_module: Any, method_name: str, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(self._forward, original_module, method_name, *args, **kwargs)


def set_no_backward_sync(strategy: Any, context: Callable[[], Any] | None) -> None:
    """Make Fabric's `no_backward_sync` enter `context()`; with `None`, Fabric warns that it saves nothing."""
    _FabricsStrategy(strategy).sync_control = None if context is None else _Context(context)


class _Context(_SyncControl):  # type: ignore[misc]
    def __init__(self, context: Callable[[], Any]) -> None:
        self._context = context

    def no_backward_sync(self, module: Any, enabled: bool) -> Any:
        return self._context()


class OneModel:
    """A mixin before Fabric's DeepSpeedStrategy.

    It ignores the model that Fabric sets for a loss: there is only one, and this must not keep it alive.
    """

    @property
    def _deepspeed_engine(self) -> Any:
        return self.model  # type: ignore[attr-defined]

    @_deepspeed_engine.setter
    def _deepspeed_engine(self, model: Any) -> None:
        pass
