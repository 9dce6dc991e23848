"""Strategies for PyTorch models: a shared `TorchStrategy`, and the engines on it."""
