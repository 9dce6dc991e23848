"""What each worker's time goes to: callbacks for a loop, Lightning and Keras alike."""

from .worker_metrics import WorkerMetrics

__all__ = ["WorkerMetrics"]
