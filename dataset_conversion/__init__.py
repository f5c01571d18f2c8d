"""Converts public data sets, as their owners distribute them, into nnU-Net's raw layout with `imagesUn`."""
