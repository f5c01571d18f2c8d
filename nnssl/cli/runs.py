"""nnssl_runs: list the runs below nnUNet_results, with state, validation Dice, time and command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import timedelta

from nnssl.cli.runtime import parser, print_json, run
from nnssl.training.runs import Run, runs
from nnssl.training.settings import DEFAULT_TAG

COLUMNS = ("data set", "trainer", "plans", "configuration", "fold", "tag", "state", "Dice", "time")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    made = parser("nnssl_runs", "List all runs: trainer, tag, state, validation Dice, time, and the command of each.")
    for flag, name, text in (
        ("-d", "dataset", "data set, name or id"),
        ("-tr", "trainer", "trainer"),
        ("-p", "plans", "plans"),
        ("-c", "configuration", "configuration"),
        ("-f", "fold", "fold"),
        ("-tag", "tag", "tag, default for runs without one"),
    ):
        made.add_argument(flag, dest=name, help=f"only runs of this {text}")
    return made


def body(arguments: argparse.Namespace) -> None:
    """Print the list."""
    names = ("dataset", "trainer", "plans", "configuration", "tag", "fold")
    found = runs(**{name: getattr(arguments, name) for name in names})
    if arguments.json:
        print_json([each.to_dict() for each in found])
    elif not found:
        print("no runs")
    else:
        print("\n".join(_lines(found)))


def _lines(found: list[Run]) -> list[str]:
    """Return a table with one row a run, and the command below the row."""
    rows = [COLUMNS, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    below = ["", *(f"    {each.command}" if each.command else "" for each in found)]
    return [line for pair in zip(lines, below, strict=True) for line in pair if line]


def _cells(each: Run) -> tuple[str, ...]:
    dice = "–" if each.validation_dice is None else f"{each.validation_dice:.3f}"
    time = str(timedelta(seconds=round(each.seconds))) if each.seconds else "–"
    names = (each.dataset, each.trainer, each.plans, each.configuration, each.fold, each.tag or DEFAULT_TAG)
    return (*names, each.progress, dice, time)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
