"""A worker's rank, where workers meet, and the command that starts them: one file per launcher, and no framework."""
