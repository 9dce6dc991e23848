"""The study that compares every engine's curve with plain code in one process."""
