"""Which scans were labelled in which round: `accepted.json` in the raw data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnssl.system.files import read_json

HISTORY_JSON = "accepted.json"


def read_history(raw: Path) -> list[dict[str, Any]]:
    """Return the rounds so far, the first one first; each has the accepted `cases` and the `strategy`.

    Raises:
        DataError: the file is damaged.
    """
    path = raw / HISTORY_JSON
    content = read_json(path, "delete the file to start the count of rounds again") if path.is_file() else []
    return [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []


def with_round(history: Sequence[dict[str, Any]], cases: Sequence[str], strategy: str) -> list[dict[str, Any]]:
    """Return a history with one more round."""
    return [*history, {"cases": sorted(cases), "strategy": strategy}]
