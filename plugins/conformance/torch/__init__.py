"""The suite's program, reference and checks for PyTorch."""
