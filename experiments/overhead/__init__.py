"""What a training step of ours costs beside the same model hand-written on the raw engine."""
