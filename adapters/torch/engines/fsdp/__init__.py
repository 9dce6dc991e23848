"""PyTorch FSDP2 (https://arxiv.org/abs/2304.11277): workers share out all of the training state."""
