"""One training run: its settings, folder, checkpoints and record, and how it is started."""
