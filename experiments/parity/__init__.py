"""The study that holds every engine's curve against plain code in one process."""
