"""DeepSpeed ZeRO (https://arxiv.org/abs/1910.02054): stages 1 to 3, with and without offload to the CPU."""
