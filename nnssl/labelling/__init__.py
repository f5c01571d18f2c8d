"""Pseudo-labels of whole scans: predicted or from files, scored, stored on the grid of the preprocessed scans."""
