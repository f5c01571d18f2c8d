"""nnssl_runs: list the runs below nnUNet_results, with state, validation Dice, time and command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run
from nnssl.training.runs import Run, runs
from nnssl.training.settings import DEFAULT_TAG

# "post" is the Dice after post-processing.
COLUMNS = ("trainer", "fold", "state", "Dice", "post", "time", "tag")  # the tag is last, as it can be long


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    made = parser("nnssl_runs", "List all runs: trainer, tag, state, Dice of the validation before and after "
                  "post-processing (post), time, and the command of each.")  # fmt: skip
    for flag, name, text in (
        ("-d", "dataset", "data set, name or id"),
        ("-tr", "trainer", "trainer"),
        ("-p", "plans", "plans name"),
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
    """Return a table of the runs of each plan: one row a run, and the command below the row."""
    found = sorted(found, key=_plan)
    rows = [COLUMNS, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines, plan = [f"  {aligned[0]}"], ""
    for each, row in zip(found, aligned[1:], strict=True):
        lines += [_plan(each)] if _plan(each) != plan else []
        lines += [f"  {row}", f"      {each.command}"] if each.command else [f"  {row}"]
        plan = _plan(each)
    return lines


def _plan(each: Run) -> str:
    return f"{each.dataset}  {each.plans}  {each.configuration}"


def _cells(each: Run) -> tuple[str, ...]:
    scores = (each.validation_dice, each.postprocessed_dice)
    before, after = ("–" if dice is None else f"{dice:.3f}" for dice in scores)
    minutes, seconds = divmod(round(each.seconds), 60)
    time = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if each.seconds else "–"
    return (each.trainer, each.fold, each.progress, before, after, time, each.tag or DEFAULT_TAG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
