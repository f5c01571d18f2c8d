"""`nnssl_report`: what runs reached, on which cases and how, as a page that opens from disk in a browser."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run

ABOUT = (
    "Write a report that opens from disk in a browser, without a network: verdict, tables with intervals, curves, best "
    "and worst cases, a 3-D viewer, data, settings, versions and commands. It holds scans and case names."
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = parser("nnssl_report", ABOUT)
    add = made.add_argument
    place = (
        "folder of a run (a fold, or a model with its folds), a folder with summary.json, or a folder that holds "
        "several of these; NAME=PLACE gives a name, and several places of one name are seeds of one method; or the "
        "folder of one study of nnssl_sweep"
    )
    add("places", metavar="RUN|STUDY", nargs="*", help=place)
    add("-d", dest="dataset", metavar="ID", help="instead of runs: all finished and validated runs of a data set")
    add("-o", dest="output_folder", metavar="FOLDER", required=True, help="writes FOLDER/index.html")
    add("-p", dest="plans", help="with -d: plans name, with the tag of the label budget")
    add("-c", dest="configuration", help="with -d or a study: configuration")
    add("-f", dest="fold", help="with -d or a study: only this fold (default: the folds of a run together)")
    add("-baseline", metavar="RUN", help="one of the runs or names (default: the only SupervisedTrainer)")
    add("-metric", default="Dice", help="metric of the verdict, as for nnssl_compare (default: %(default)s)")
    add("-cases", type=int, default=3, metavar="N", help="number of worst and of best cases (default: 3)")
    add("--single_file", action="store_true", help="everything in index.html, for passing on within the hospital")
    return made


def body(arguments: argparse.Namespace) -> None:
    """Write the report and say where it stands."""
    from nnssl.reports.api import report
    from nnssl.reports.tables import summary_sentences

    names = ("dataset", "plans", "configuration", "fold", "output_folder", "baseline", "metric", "cases", "single_file")
    result = report(arguments.places, **{name: getattr(arguments, name) for name in names})
    if arguments.json:
        verdict = result.comparison.to_dict() if result.comparison else None
        content = {"index": str(result.index), "cases": result.cases, "size_bytes": result.size_bytes}
        print_json({**content, "comparison": verdict})
        return
    if result.comparison:
        print(" ".join(summary_sentences(result.comparison)))
    print(f"report: {result.index} ({result.size_bytes / 1e6:.1f} MB); it holds patient data")
    print(f"open:   {result.index.resolve().as_uri()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
