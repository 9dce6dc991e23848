"""The study that finds a straggler by the waiting of the other workers."""
