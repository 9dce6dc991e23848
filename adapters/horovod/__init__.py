"""What both of Horovod's engines share: how it joins a job, and keeps MPI."""
