"""What can go from the folders of preprocessed data."""
