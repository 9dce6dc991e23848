"""Measure how each worker spends its time: callbacks for a loop, Lightning and Keras."""

from .folder import Reader, RunFolder
from .records import Across, Event, Logged, Record, Spread, Straggler, Window, Workers
from .sinks import RunInfo, Sink
from .worker_metrics import WorkerMetrics

__all__ = [
    "Across",
    "Event",
    "Logged",
    "Reader",
    "Record",
    "RunFolder",
    "RunInfo",
    "Sink",
    "Spread",
    "Straggler",
    "Window",
    "WorkerMetrics",
    "Workers",
]
