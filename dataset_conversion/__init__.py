"""Public data sets, as a user gets them from their owners, into nnU-Net's raw layout with `imagesUn`."""
