"""Fabric's hooks, mapped onto our strategies' primitives: the code that all engines share."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import torch

from ....adapters import OptionError
from ....adapters.torch.engine import Engine
from .. import environment
from ..compat import set_no_backward_sync
from ..forks import warn_of_forks
from ..held import release
from ..joining import Joining, share_weights
from ..package import fabric_part
from ..reducing import Reducing
from .data import LossShares, share_out
from .module import SetUpModule

_DDPStrategy: Any = fabric_part("strategies").DDPStrategy


class FabricAdapterStrategy(Joining, Reducing, _DDPStrategy):  # type: ignore[misc]
    """Base of Fabric's strategies on ours. Lightning starts processes; we join, split data and reduce.

    Args:
        name: the strategy's, as in `create_strategy`.
        options: the engine's.
    """

    frontend = "Fabric"

    def __init__(self, name: str, **options: Any) -> None:
        _DDPStrategy.__init__(self)
        self._stand_for(name, options)
        set_no_backward_sync(self, contextlib.nullcontext)  # no backward pass communicates
        self._shares = LossShares()
        self._share_out_next = False
        self._modules: list[weakref.ref[SetUpModule]] = []
        self._reduce_nothing_yet()

    # Workers.

    def before_launch(self) -> None:
        environment.check_nodes(self.cluster_environment, self.num_nodes, self.frontend)
        super().before_launch()

    def setup_environment(self) -> None:
        self.accelerator.setup_device(self.root_device)
        self._join()

    # Data.

    @property
    def distributed_sampler_kwargs(self) -> None:
        """`None`, so that Fabric keeps samplers. Fabric reads it before each loader whose data is to be split."""
        self._share_out_next = True

    def process_dataloader(self, dataloader: Any) -> Any:
        wanted, self._share_out_next = self._share_out_next, False
        warn_of_forks(dataloader, self.adapter)
        return share_out(dataloader, self.adapter, self._shares) if wanted else dataloader

    # Modules and optimizers.

    def setup_module(self, module: torch.nn.Module) -> SetUpModule:
        release(module)
        if self.world_size > 1:
            share_weights(module)
        return self._known(SetUpModule(module, self._shares))

    def _known(self, module: SetUpModule) -> SetUpModule:
        self._modules = [*(known for known in self._modules if known() is not None), weakref.ref(module)]
        return module

    @property
    def modules(self) -> list[SetUpModule]:
        """The modules that were set up and are still in use, in order."""
        return [module for known in self._modules if (module := known()) is not None]

    def engine_of(self, optimizer: Any) -> Engine:
        engine = self._of_optimizer.get(id(optimizer))
        if engine is None:
            raise OptionError(
                f"this {type(optimizer).__name__} was not set up by this Fabric: pass it through "
                "fabric.setup(model, optimizer)"
            )
        return engine

    # A step.

    def backward(self, tensor: torch.Tensor, module: Any, *args: Any, **kwargs: Any) -> None:
        for known in self.modules:
            if known.ran_without_optimizer:
                known.ran_without_optimizer = False
                raise OptionError(
                    f"{type(known.module).__name__} was set up without an optimizer, so nothing would reduce its "
                    "gradients: set the optimizer up too, or freeze the model with requires_grad_(False) or eval()"
                )
        self._reduced.clear()
        share = self._shares.of_loss()
        if share is not None:
            weight, total = share
            tensor = self.weigh(tensor, weight, total)
        _DDPStrategy.backward(self, tensor, module, *args, **kwargs)

    # Checkpoints.

    def get_module_state_dict(self, module: torch.nn.Module) -> dict[str, Any]:
        state: dict[str, Any] = _user_module(module).state_dict()
        return state

    def load_module_state_dict(self, module: torch.nn.Module, state_dict: Any, strict: bool = True) -> None:
        _user_module(module).load_state_dict(state_dict, strict=strict)


def check_owned(optimizer: torch.optim.Optimizer, modules: list[torch.nn.Module]) -> None:
    """Check that all parameters of the optimizer belong to the modules.

    Raises:
        OptionError: one does not.
    """
    own = {id(parameter) for module in modules for parameter in module.parameters()}
    if not {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} <= own:
        raise OptionError(
            f"the {type(optimizer).__name__} holds parameters of no model that was set up, so no engine would reduce "
            "their gradients: set up their model first, or add them to one"
        )


def _user_module(module: torch.nn.Module) -> torch.nn.Module:
    return module.module if isinstance(module, SetUpModule) else module
