"""Semi-supervised trainers: one published method a file."""
