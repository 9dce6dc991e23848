"""Runnable studies that compare strategies and prove what is claimed of them: `farandole experiment`."""
