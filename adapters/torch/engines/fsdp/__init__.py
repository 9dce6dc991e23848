"""PyTorch FSDP2 (https://arxiv.org/abs/2304.11277): all of the training state is sharded."""
