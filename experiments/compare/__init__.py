"""One training program on real data under every strategy, with the same curve."""
