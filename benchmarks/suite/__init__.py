"""The benchmark of kshot: the same shots, rows and budget for every way to make an expert of them."""
