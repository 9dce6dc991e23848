"""The cost of our training step, compared with the same model hand-written on the raw engine."""
