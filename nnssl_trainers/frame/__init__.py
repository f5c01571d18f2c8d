"""The base classes of every method: networks, batch streams, optimiser steps, checkpoints, validation, run loop."""
