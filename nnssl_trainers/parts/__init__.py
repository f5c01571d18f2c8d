"""What methods hold: losses on segmentations, features of networks, logits of regions."""
