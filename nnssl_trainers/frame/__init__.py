"""What every method stands on: networks, streams of batches, steps, checkpoints, validation, the run loop."""
