"""The memory of activations with gradient checkpointing, its price in time, and that gradients stay the same."""
