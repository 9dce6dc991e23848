"""How a Lightning strategy finds its workers, and joins their job through one of our strategies."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist

from ...adapters import Launch, StrategyStateError, Worker, WorkerLostError, create_strategy, launched_as
from ...adapters.failure_report import is_reported
from ...adapters.torch.meeting import Meeting
from ...adapters.torch.strategy import TorchStrategy
from . import environment, job
from .compat import Launching

ON_DEMAND = 2**31
"""More backward passes than any step has: gradients are then reduced when the optimizer asks for them."""


class Joining(Launching):
    """A mixin before a strategy class of Lightning.

    frontend: what the class is used with: "Trainer" or "Fabric".
    """

    frontend = "Trainer"
    _chosen_accelerator: Any = None
    root_device: torch.device
    num_processes: int
    launcher: Any

    def _stand_for(self, name: str, options: dict[str, Any]) -> None:
        """Set the name and options of our strategy, as in `create_strategy`; options that are `None` are left out."""
        self._adapter_name = name
        self._adapter_options = {option: value for option, value in options.items() if value is not None}
        self._used = False
        self.cluster_environment = environment.in_place_of_refused()
        self._hold_nothing()

    def _hold_nothing(self) -> None:
        """Set the state of a strategy that has joined no job."""
        self._adapter: TorchStrategy | None = None
        self._meeting: Meeting | None = None

    @property
    def adapter(self) -> TorchStrategy:
        """Our strategy, which does the work; it exists once the workers were started."""
        if self._adapter is None:
            raise StrategyStateError(
                f"strategy {self._adapter_name!r} has not joined: its {self.frontend} has not run yet"
            )
        return self._adapter

    @property
    def accelerator(self) -> Any:
        return self._chosen_accelerator

    @accelerator.setter
    def accelerator(self, chosen: Any) -> None:
        # A Trainer or Fabric sets this first. It has another name than Lightning's, whose own error would come first if
        # a second one used this object.
        self.refuse_second_use()
        self._chosen_accelerator = chosen

    @property
    def cluster_environment(self) -> Any:
        return self._launched_in

    @cluster_environment.setter
    def cluster_environment(self, chosen: Any) -> None:
        self._launched_in = environment.resolve(chosen)

    @property
    def parallel_devices(self) -> Any:
        return self._devices_here

    @parallel_devices.setter
    def parallel_devices(self, devices: Any) -> None:
        if devices:
            automatic = self.accelerator.auto_device_count()
            available = self.accelerator.get_parallel_devices(self.accelerator.parse_devices(automatic))
            devices = environment.devices_here(self.cluster_environment, devices, automatic, available, self.frontend)
        self._devices_here = devices

    def refuse_second_use(self) -> None:
        """Raise `StrategyStateError` if a Trainer or Fabric has this object already."""
        if self._used:
            raise StrategyStateError(
                f"this {type(self).__name__} belongs to another {self.frontend} already: make a new one for each "
                f"{self.frontend}"
            )

    def before_launch(self) -> None:
        """Reserve this object for one Trainer or Fabric."""
        self._used = True
        self._create_adapter(Launch("none", Worker()))  # checks the options now

    def _join(self) -> None:
        launch = environment.launch_of(self.cluster_environment, self.num_processes)
        key = (self._adapter_name, self._options())
        joined = job.join(key, lambda: self._create_adapter(launch), getattr(self.launcher, "procs", ()))
        self._adapter, self._meeting = joined.strategy, joined.meeting

    # When a worker ends.

    def is_alone(self) -> bool:
        """Whether this worker handles an exception that the others do not."""
        return False

    def say_who_failed(self, lost: WorkerLostError) -> None:
        """Add the lost worker's error, unless a launcher prints it at the end of the job."""
        failure = "" if self._meeting is None or is_reported() else self._meeting.told()
        if failure and not hasattr(lost, "__notes__"):
            lost.add_note(failure)

    def _options(self) -> dict[str, Any]:
        """Return the engine's options, including those that follow from the frontend's arguments."""
        return {"device": str(self.root_device), **self._adapter_options}  # "cpu", "cuda:2"

    def _create_adapter(self, launch: Launch) -> TorchStrategy:
        with launched_as(launch):
            adapter: Any = create_strategy(self._adapter_name, **self._options())
        return cast(TorchStrategy, adapter)


def share_weights(module: torch.nn.Module) -> None:
    """Give every worker rank 0's parameters and buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        values = tensor.detach().contiguous()
        dist.broadcast(values, 0)
        if not tensor.is_contiguous():
            tensor.detach().copy_(values)
