"""Build a model whose parameters are partitioned from the start: zero.Init, with its silent faults refused."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ....errors import OptionError
from ...compat import import_dynamo
from ...parameter_types import scalar_error
from .compat import is_apart, is_partitioned, scalar_met
from .library import as_local_rank

_WAY_OUT = "build the model before scope(): prepare() partitions it, and each worker holds the whole model until then"


@contextlib.contextmanager
def partitioned_building(
    deepspeed: Any, config: Mapping[str, Any], strategy_name: str, device: torch.device
) -> Iterator[None]:
    """Partition each module's parameters, on this worker's device, as soon as it is constructed.

    Raises:
        OptionError: the model has a scalar parameter, copies a module, or writes to parameters of a submodule in a way
            that would be lost.
    """
    # torch.optim imports it at first use, and it cannot be imported while zero.Init has replaced Tensor.__new__.
    import_dynamo()
    with contextlib.ExitStack() as stack:
        with as_local_rank(device):
            building = deepspeed.zero.Init(config_dict_or_path=copy.deepcopy(dict(config)))
        stack.enter_context(building)
        stack.enter_context(_WriteThrough())
        try:
            yield
        except ValueError as error:
            if "Fan in and fan out can not be computed" in str(error):
                raise _lost("an initializer") from error
            raise
        except RuntimeError as error:
            scalar = scalar_met(error)
            if scalar is not None:
                raise scalar_error(scalar, strategy_name) from error
            raise


def refuse_groups_by_shape(optimizer: torch.optim.Optimizer) -> None:
    """Refuse groups formed by the shapes of partitioned parameters, which are empty tensors: `p.ndim > 1`.

    Raises:
        OptionError: a group is empty, and the parameters were partitioned before.
    """
    groups = [group["params"] for group in optimizer.param_groups]
    if not all(groups) and any(is_partitioned(parameter) for group in groups for parameter in group):
        raise OptionError(
            "a group of the optimizer is empty. Inside scope() parameters are partitioned, and p.ndim, p.shape and "
            "p.numel() are those of empty tensors: form groups by len(p.ds_shape) and p.ds_numel, or "
            "build model and optimizer before scope()"
        )


class _WriteThrough(TorchFunctionMode):
    """Let a module initialize parameters of its submodules, as nn.MultiheadAttention does.

    They are partitioned by then, and values written to the empty tensors would be lost silently. So the parameters are
    gathered for the write, on every worker, and for a comparison, as in nn.init.trunc_normal_. Writes to an earlier
    alias (`.data`, a slice) cannot be traced, and are refused.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        target = args[0] if args else keywords.get("tensor")  # torch.nn.init passes keywords
        name = getattr(func, "__name__", "")
        if name == "clone" and sys._getframe(1).f_code.co_name == "__deepcopy__" and _is_empty(target):
            raise OptionError(
                "the model copies one of its modules (nn.TransformerEncoder does) whose parameters are already "
                f"partitioned, so that the copies would have none: {_WAY_OUT}"
            )
        if name == "__getitem__" and is_apart(target) and not _called_by_deepspeed():
            raise _lost("a slice")
        sets_data = func == _SET_DATA and args[1].numel() > 0  # Module.to sets another empty tensor
        writes = sets_data or (name.endswith("_") and not name.endswith("__"))
        compares = name in _COMPARISONS and is_apart(target)
        if not (writes or compares) or not _is_empty(target) or _called_by_deepspeed():
            return func(*args, **keywords)
        if not sets_data and is_apart(target):
            import deepspeed

            with deepspeed.zero.GatheredParameters([target], modifier_rank=0 if writes else None):
                return func(*args, **keywords)
        if not sets_data or is_apart(target):
            raise _lost("an assignment to .data" if sets_data else name)
        return func(*args, **keywords)


_COMPARISONS = frozenset({"lt", "le", "gt", "ge"})
_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]


def _is_empty(value: Any) -> bool:
    """Whether it has the shape of the empty tensor of a partitioned parameter."""
    return isinstance(value, torch.Tensor) and value.shape == (0,)


def _called_by_deepspeed() -> bool:
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return bool(caller.startswith("deepspeed."))


def _lost(what: str) -> OptionError:
    return OptionError(
        f"a module has {what} set values of a submodule's parameter, which is already partitioned, so that they would "
        f"be lost: do it in Module.apply or under deepspeed.zero.GatheredParameters, or {_WAY_OUT}"
    )
