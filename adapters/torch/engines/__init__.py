"""One engine a module or package, on the shared base of PyTorch's strategies."""
