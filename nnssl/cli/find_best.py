"""`nnssl_find_best`: which run, or pair of runs, of a data set predicts best on held-out labelled cases."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    about = (
        "Rate the finished runs of a data set, and pairs of them, on the validation cases of the folds that all share; "
        "decide about post-processing; and write best.json, which nnssl_predict follows."
    )
    made = parser("nnssl_find_best", about)
    made.add_argument("-d", required=True, metavar="DATASET", help="data set, name or id")
    made.add_argument("-p", metavar="PLANS", help="plans name with the tag of the label budget")
    made.add_argument("-c", metavar="CONFIGURATION", help="only this configuration; default: all compete")
    return made


def _body(arguments: argparse.Namespace) -> None:
    from nnssl.selection.api import find_best

    result = find_best(arguments.d, plans=arguments.p, configuration=arguments.c)
    if arguments.json:
        print_json({**result.to_dict(), "file": str(result.file)})
        return
    print(f"Dice on {result.cases} held-out cases, folds {' '.join(result.folds)}, the best first")
    for each in result.candidates:
        print(f"{100 * each.dice:.2f}  {' + '.join(each.models)}  post-processing: {each.postprocessing}")
    for note in result.notes:
        print(f"note: {note}")
    print(f"written: {result.file}")
    print(f"next: nnssl_predict -i IMAGES -o MASKS -d {result.dataset}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), _body, argv)
