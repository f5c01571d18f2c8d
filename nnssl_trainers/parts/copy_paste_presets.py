"""What the papers on bidirectional copy-paste set: the losses that they share, and DSMT-Net's training."""

from __future__ import annotations

from nnssl.config import Value

# Bai et al., CVPR 2023: each patch is in one mix, labels teach by the mixes alone, each side of a mix has its own Dice
# and cross-entropy, and each class of the pseudo-labels keeps its largest component, however confident it is.
COPY_PASTE_LOSSES: dict[str, Value] = {
    "pretrain_mix": "one",
    "pretrain_least": 0,
    "labelled_loss": "mixed",
    "pairs": "halves",
    "mixed_dice": "regions",
    "pseudo_confidence": 0.0,
    "largest_component": True,
}
# Su, Sun, Adamyk, DSMT-Net, Computational Biology and Chemistry 119 (2025) 108579.
DSMT_TRAINING: dict[str, Value] = {
    "network": "bcp",
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 1e-4,
    "augmentation": "paper",
    "learning_rate_schedule": "step",
    "learning_rate_factor": 0.9,
    "learning_rate_interval": 1 / 12,  # every 2,500 of 30,000 iterations
}
