"""What both of Horovod's strategies share: its import, how a worker joins and leaves its job, and keeps MPI."""
