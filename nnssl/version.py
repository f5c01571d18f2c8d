"""Version and name of the distribution, for the parts of nnssl that must not import its face."""

from __future__ import annotations

__version__ = "0.1.0"
DISTRIBUTION = "nnssl-semi"
