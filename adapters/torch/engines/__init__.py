"""One module or package per engine, on the shared base of PyTorch's strategies."""
