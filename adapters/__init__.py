"""One strategy interface over several training engines; importing this package imports none of them.

`farandole.plugins.pytest` tests the contract of every strategy.
"""

from .batches import Batch, Batches
from .callback import Callback, Phase, Run, StepRecord
from .capabilities import Capabilities
from .checkpoint import latest
from .errors import (
    CallbackError,
    CheckpointError,
    DataError,
    EngineUnavailableError,
    FarandoleError,
    LauncherError,
    OptionError,
    StrategyStateError,
    UnknownStrategyError,
    WorkerLostError,
)
from .launch.detect import detect_launch, launched_as
from .launch.variables import Launch
from .progress import Progress
from .registry import StrategyRow, create_strategy, strategy_row, strategy_rows
from .strategy import Strategy
from .training import Training
from .worker import Worker

__all__ = [
    "Batch",
    "Batches",
    "Callback",
    "CallbackError",
    "Capabilities",
    "CheckpointError",
    "DataError",
    "EngineUnavailableError",
    "FarandoleError",
    "Launch",
    "LauncherError",
    "OptionError",
    "Phase",
    "Progress",
    "Run",
    "StepRecord",
    "Strategy",
    "StrategyRow",
    "StrategyStateError",
    "Training",
    "UnknownStrategyError",
    "Worker",
    "WorkerLostError",
    "create_strategy",
    "detect_launch",
    "latest",
    "launched_as",
    "strategy_row",
    "strategy_rows",
]
