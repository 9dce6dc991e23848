"""Runnable studies that compare strategies and prove our claims about them: `farandole experiment`."""
