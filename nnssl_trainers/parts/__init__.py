"""Parts that methods use: segmentation losses, features of networks, logits of regions."""
