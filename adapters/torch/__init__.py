"""What trains PyTorch models: a shared `TorchStrategy`, and the engines on it."""
