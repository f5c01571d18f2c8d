"""The log of a run with one row per epoch: `progress.jsonl` and `progress.csv` in the fold's folder."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from nnssl.system.files import write_text

Row = dict[str, Any]


class EpochLog:
    """The rows of the log; `append` rewrites both files atomically.

    Args:
        folder: the folder of the fold.
    """

    def __init__(self, folder: Path) -> None:
        self.jsonl, self.csv = folder / "progress.jsonl", folder / "progress.csv"
        self.rows: list[Row] = []

    def rewind(self, iteration: int) -> None:
        """Read the rows of an earlier session and drop the rows after `iteration`: the run repeats those epochs."""
        lines = self.jsonl.read_text(encoding="utf-8").splitlines() if self.jsonl.is_file() else []
        self.rows = [row for row in map(json.loads, lines) if row["iteration"] <= iteration]

    def take_over(self, folder: Path, iteration: int) -> None:
        """Write the rows of another run up to `iteration` into both files of this log."""
        other = EpochLog(folder)
        other.rewind(iteration)
        self.rows = other.rows
        self._write()

    def append(self, row: Row) -> None:
        """Add a row and write both files."""
        self.rows.append(row)
        self._write()

    def _write(self) -> None:
        write_text(self.jsonl, "".join(json.dumps(row) + "\n" for row in self.rows))
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.csv, text.getvalue())


def epoch_line(row: Row, num_iterations: int, terms: dict[str, float], names: Sequence[str] = ()) -> str:
    """Return one line for the terminal: loss with its terms, pseudo-Dice by structure, speed, data wait, time left.

    Args:
        row: the row of the epoch.
        num_iterations: length of the run.
        terms: the loss terms by name.
        names: the names of the structures; `pseudo_dice_k` of the row belongs to the k-th name.
    """
    dice = {name: row.get(f"pseudo_dice_{k}", math.nan) for k, name in enumerate(names, start=1)}
    left = timedelta(seconds=round((num_iterations - row["iteration"]) * row["seconds_per_iteration"]))
    return (
        f"iteration {row['iteration']}/{num_iterations}  loss {row['loss']:.3f}{_list_parts(terms)}  "
        f"pseudo-Dice {row['pseudo_dice']:.3f}{_list_parts(dice)}  "
        f"{row['seconds_per_iteration']:.3f} s/iteration  "
        f"data wait {100 * row['data_wait_share']:.0f} %  ETA {left}"
    )


def _list_parts(parts: dict[str, float]) -> str:
    """Return the parts of a number in brackets; a single part says nothing new and gives no text."""
    if len(parts) < 2:
        return ""
    return " (" + ", ".join(f"{name} {value:.3f}" for name, value in parts.items()) + ")"
