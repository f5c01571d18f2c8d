"""Speed and accuracy against stock nnU-Net; every script prints ratios measured in one run."""
