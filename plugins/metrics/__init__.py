"""Measure how each worker spends its time: callbacks for a loop, Lightning and Keras."""

from .worker_metrics import WorkerMetrics

__all__ = ["WorkerMetrics"]
