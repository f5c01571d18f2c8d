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

from nnssl.system.files import append_text, write_text

Row = dict[str, Any]


class EpochLog:
    """The rows of the log. A new row is added at the end of both files, so that an epoch late in a run costs no more.

    Both files are rewritten atomically where a session begins, and where a row has a new column. A kill can leave half
    a line at the end, which `rewind` drops.

    Args:
        folder: the folder of the fold.
    """

    def __init__(self, folder: Path) -> None:
        self.jsonl, self.csv = folder / "progress.jsonl", folder / "progress.csv"
        self.rows: list[Row] = []
        self._columns: dict[str, None] = {}  # of the files; empty as long as these are not of this session

    def rewind(self, iteration: int) -> None:
        """Read the rows of an earlier session and drop the rows after `iteration`: the run repeats those epochs."""
        text = self.jsonl.read_text(encoding="utf-8") if self.jsonl.is_file() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()
        self.rows = [row for row in map(json.loads, whole) if row["iteration"] <= iteration]
        self._columns = {}

    def take_over(self, folder: Path, iteration: int) -> None:
        """Write the rows of another run up to `iteration` into both files of this log."""
        other = EpochLog(folder)
        other.rewind(iteration)
        self.rows = other.rows
        self._write()

    def append(self, row: Row) -> None:
        """Add a row to both files.

        Raises:
            EnvironmentProblem: a file cannot be written.
        """
        self.rows.append(row)
        if not row.keys() <= self._columns.keys():
            self._write()
            return
        append_text(self.jsonl, json.dumps(row) + "\n")
        append_text(self.csv, self._table([row]))

    def _write(self) -> None:
        write_text(self.jsonl, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._columns = dict.fromkeys(name for row in self.rows for name in row)
        write_text(self.csv, ",".join(self._columns) + "\n" + self._table(self.rows))

    def _table(self, rows: Sequence[Row]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, list(self._columns), lineterminator="\n").writerows(rows)
        return text.getvalue()


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
