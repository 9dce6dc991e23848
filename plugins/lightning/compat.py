"""What we use of Lightning that it does not document: each name stands here once, behind a function of ours.

They are looked for when this is imported: a name that an upgrade took away is an error then, and not in the middle of a
training. All of them are in Lightning 2.5.0 and in 2.6.6, but for what is said to be newer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from packaging.version import Version

from ...adapters import EngineUnavailableError
from .package import NAME, VERSION, fabric_part, trainer_part

NEWEST = "2.6.6"
"""The newest Lightning that these names were seen to work in."""

names: list[tuple[Any, str]] = []
"""The owner, a module or a class, of each name that is looked for, and the name."""

Part = Callable[[str], Any]


def _find(part: Part, module: str, path: str) -> Any:
    """Return a name of a module of Lightning's, or of a class in it: "Class.method".

    Raises:
        EngineUnavailableError: it is not there.
    """
    *owners, name = path.split(".")
    try:
        owner = part(module)
        for step in owners:
            owner = getattr(owner, step)
        names.append((owner, name))
        return getattr(owner, name)
    except (ImportError, AttributeError):
        raise _gone(f"{module}.{path}") from None


class _Attribute:
    """An attribute that objects of a class of Lightning's have: of the class, or set by its constructor.

    Raises:
        EngineUnavailableError: they do not.
    """

    def __init__(self, part: Part, module: str, kind: str, name: str) -> None:
        owner = _find(part, module, kind)
        names[-1] = owner, name
        if not hasattr(owner, name) and name not in inspect.unwrap(owner.__init__).__code__.co_names:
            raise _gone(f"{module}.{kind}.{name}")
        self._name = name

    def of(self, thing: Any) -> Any:
        return getattr(thing, self._name)

    def set(self, thing: Any, value: Any) -> None:
        setattr(thing, self._name, value)


def _gone(name: str) -> EngineUnavailableError:
    package = NAME.replace("_", "-")
    return EngineUnavailableError(
        f"farandole.plugins.lightning uses {name}, which {package} {VERSION or '(no release)'} does not have. "
        f'Install one that has it with: pip install "{package}=={NEWEST}"'
    )


# Data.

_seed_processes = _find(fabric_part, "utilities.data", "_auto_add_worker_init_fn")
_constructor_arguments = _find(trainer_part, "utilities.data", "_get_dataloader_init_args_and_kwargs")
_construct_like = _find(trainer_part, "utilities.data", "_reinstantiate_wrapped_cls")
_NotingIndices = _find(trainer_part, "overrides.distributed", "_IndexBatchSamplerWrapper")
_noted = _Attribute(trainer_part, "overrides.distributed", "_IndexBatchSamplerWrapper", "_batch_sampler")
_load_states = _find(trainer_part, "loops.fit_loop", "_FitLoop._load_combined_loader_states")
_connector = _Attribute(trainer_part, "trainer.trainer", "Trainer", "_accelerator_connector")
_samples_itself = _Attribute(
    trainer_part, "trainer.connectors.accelerator_connector", "_AcceleratorConnector", "use_distributed_sampler"
)
_results = _Attribute(trainer_part, "trainer.trainer", "Trainer", "_results")


def seed_loader_processes(loader: Any, rank: int) -> None:
    """Have the processes of a DataLoader seeded, where `seed_everything(workers=True)` asked for it."""
    _seed_processes(loader, rank)


def constructor_arguments(loader: Any, sampler: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a DataLoader was constructed with, for one of its class with another sampler."""
    arguments, keywords = _constructor_arguments(loader, sampler)
    return arguments, keywords


def construct_like(loader: Any, **keywords: Any) -> Any:
    """Construct a DataLoader of the class of `loader`, with the attributes that it was given since."""
    return _construct_like(loader, **keywords)


def noting_indices(batch_sampler: Any) -> Any:
    """Wrap a batch sampler so that Lightning's prediction writers are told which samples were predicted."""
    return _NotingIndices(batch_sampler)


def without_notes(batch_sampler: Any) -> Any:
    """Return a batch sampler as it was before Lightning, or `noting_indices`, wrapped it."""
    return _noted.of(batch_sampler) if isinstance(batch_sampler, _NotingIndices) else batch_sampler


def take_over_sampling(trainer: Any) -> bool:
    """Keep a Trainer from putting samplers of its own into loaders; return whether it would have.

    It does so before it asks the strategy, and the user's own sampler could not be seen any more.
    """
    connector = _connector.of(trainer)
    would = bool(_samples_itself.of(connector))
    _samples_itself.set(connector, False)
    return would


def load_loader_states(fit_loop: Any) -> None:
    """Give the training loaders what a checkpoint says of them, unless Lightning has."""
    _load_states(fit_loop)


def log_without_weight(trainer: Any) -> None:
    """Have what is logged in this step not count in the epoch's means."""
    results = _results.of(trainer)
    if results is not None:
        results.batch_size = 0


# SIGTERM.

_signals = _Attribute(trainer_part, "trainer.trainer", "Trainer", "_signal_connector")
_SIGNALS = ("trainer.connectors.signal_connector", "_SignalConnector")
_handler = _Attribute(trainer_part, *_SIGNALS, "_sigterm_notifier_fn")
_received = _Attribute(trainer_part, *_SIGNALS, "received_sigterm")
# Since 2.5.5 workers agree on it, in the way that `sigterm` says (Lightning's pull request 20825).
_AGREES = VERSION is None or Version("2.5.5") <= VERSION
_agree = (
    _Attribute(trainer_part, "loops.training_epoch_loop", "_TrainingEpochLoop", "_broadcast_sigterm_tensor")
    if _AGREES
    else None
)


def take_over_sigterm(trainer: Any, note: Callable[[int, Any], None], look: Callable[[], None]) -> None:
    """Have a Trainer call `note` on SIGTERM, and `look` before each batch; an older Lightning has its workers end."""
    if _agree is not None:
        _agree.set(trainer.fit_loop.epoch_loop, look)
        _handler.set(_signals.of(trainer), note)


def note_sigterm(trainer: Any) -> None:
    """Have a Trainer end for SIGTERM."""
    _received.set(_signals.of(trainer), True)


# Strategies.

_find(trainer_part, "strategies.strategy", "Strategy._configure_launcher")
_find(fabric_part, "strategies.strategy", "Strategy._configure_launcher")
_after_closure = _find(trainer_part, "plugins.precision.precision", "Precision._after_closure")
_layer_sync = _Attribute(trainer_part, "strategies.parallel", "ParallelStrategy", "_layer_sync")
_Redirection: Any = _find(trainer_part, "strategies.strategy", "_ForwardRedirection")
_redirection = _Attribute(trainer_part, "strategies.strategy", "Strategy", "_forward_redirection")
_SyncControl: Any = _find(fabric_part, "strategies.strategy", "_BackwardSyncControl")
_sync_control = _Attribute(fabric_part, "strategies.strategy", "Strategy", "_backward_sync_control")
_Attribute(fabric_part, "strategies.deepspeed", "DeepSpeedStrategy", "_deepspeed_engine")


class Launching:
    """Comes before a strategy class of Lightning's, a Trainer's or Fabric's."""

    def before_launch(self) -> None:
        """Do what is to be done once the strategy has been told all that it works with, and before workers start."""

    def _configure_launcher(self) -> None:
        self.before_launch()
        super()._configure_launcher()  # type: ignore[misc]


def layer_sync(strategy: Any) -> Any:
    """Return the plugin for `sync_batchnorm=True`; `None` without."""
    return _layer_sync.of(strategy)


def before_update(precision: Any, module: Any, optimizer: Any) -> None:
    """Call the hooks of Lightning's that come between backward and the update, and have gradients clipped."""
    _after_closure(precision, module, optimizer)


def run_steps_in(strategy: Any, forward: Callable[..., Any]) -> None:
    """Have a Trainer's strategy run a step of the module inside `forward`, which calls the module."""
    _redirection.set(strategy, _Inside(forward))


class _Inside(_Redirection):  # type: ignore[misc]
    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward

    def __call__(self, wrapper_module: Any, original_module: Any, method_name: str, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(self._forward, original_module, method_name, *args, **kwargs)


def set_no_backward_sync(strategy: Any, context: Callable[[], Any] | None) -> None:
    """Have `context()` entered in Fabric's `no_backward_sync`; without, Fabric warns there that it saves nothing."""
    _sync_control.set(strategy, None if context is None else _Context(context))


class _Context(_SyncControl):  # type: ignore[misc]
    def __init__(self, context: Callable[[], Any]) -> None:
        self._context = context

    def no_backward_sync(self, module: Any, enabled: bool) -> Any:
        return self._context()


class OneModel:
    """Comes before Fabric's DeepSpeedStrategy.

    Fabric says of which model a loss is. There is one, which this is not to keep alive.
    """

    @property
    def _deepspeed_engine(self) -> Any:
        return self.model  # type: ignore[attr-defined]

    @_deepspeed_engine.setter
    def _deepspeed_engine(self, model: Any) -> None:
        pass
