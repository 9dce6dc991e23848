"""Engines that train PyTorch models, on a shared `TorchStrategy`."""
