"""Semi-supervised trainers: each published method is one file in `methods`."""
