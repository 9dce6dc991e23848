"""Who a worker is, where workers meet, and the command that starts them: one file a launcher, and no framework."""
