"""The suite's program in Lightning: the variants, trained by its Trainer on our strategies and on one device."""
