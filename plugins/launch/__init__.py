"""Start jobs: the launch command of a strategy, and a runner that leaves no process behind."""
