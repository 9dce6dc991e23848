"""Which strategies an experiment runs: the requested ones, or all installed ones."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters.errors import EngineUnavailableError, OptionError
from ..adapters.registry import strategy_row, strategy_rows
from ..plugins.launch.installed import check_installed, problem
from .experiment import Experiment


def check_requirements(name: str, experiment: Experiment) -> None:
    """Raise `EngineUnavailableError` if a requirement of the experiment itself is missing."""
    for requirement in experiment.requirements:
        found = problem(requirement)
        if found is not None:
            what, fix = found
            raise EngineUnavailableError(f"experiment {name!r} needs {requirement.distribution}, {what}: {fix}")


def asked_strategies(name: str, experiment: Experiment, asked: Sequence[str]) -> list[str]:
    """Return the requested strategies, each once.

    Raises:
        UnknownStrategyError: one is not registered.
        OptionError: the experiment does not support one.
        EngineUnavailableError: the engine of one is not installed.
    """
    for strategy in asked:
        check_installed(strategy_row(strategy))
        if experiment.strategies is not None and strategy not in experiment.strategies:
            supported = ", ".join(experiment.strategies)
            raise OptionError(f"experiment {name!r} is not made for strategy {strategy!r}, only for: {supported}")
    return list(dict.fromkeys(asked))


def installed_strategies(experiment: Experiment) -> tuple[list[str], dict[str, str]]:
    """Return all strategies that the experiment can run here, and why others that it supports are left out.

    Raises:
        EngineUnavailableError: none is installed.
    """
    chosen: list[str] = []
    left_out: dict[str, str] = {}
    for name, row in strategy_rows().items():
        if experiment.strategies is not None and name not in experiment.strategies:
            continue
        try:
            check_installed(row)
        except EngineUnavailableError as error:
            left_out[name] = str(error)
        else:
            chosen.append(name)
    if not chosen:
        raise EngineUnavailableError("no strategy is installed. " + next(iter(left_out.values()), ""))
    return chosen, left_out
