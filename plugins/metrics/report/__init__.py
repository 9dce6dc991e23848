"""A run's folder as one page of HTML: `farandole report DIR`."""
