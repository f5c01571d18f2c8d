from __future__ import annotations

from tests.inference.conftest import model, results

__all__ = ["model", "results"]
