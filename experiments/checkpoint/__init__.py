"""What a checkpoint is worth: whether any engine goes on from it, and what saving and loading cost."""
