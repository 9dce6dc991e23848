"""The study of `WorkerMetrics`: what it costs, and whether it names the right worker and cause."""
