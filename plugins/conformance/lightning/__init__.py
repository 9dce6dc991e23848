"""The suite's program in Lightning: the variants, run through its Trainer on our strategies and on one device."""
