"""Start jobs: the launch command of a strategy, and a runner that accounts for every process."""
