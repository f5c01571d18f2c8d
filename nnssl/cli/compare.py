"""`nnssl_compare`: methods beside a baseline on the same cases, and whether each helped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnssl.cli.runtime import parser, print_json, refuse_options, run
from nnssl.names import STUDY_DB as DATABASE

ABOUT = (
    "Compare methods with a baseline on the same cases: paired differences by patient, mean with 95 % interval, "
    "Wilcoxon's test with Holm's adjustment, and for each method a plain verdict: helped, no evidence or hurt. Reads "
    "summary.json and run.json only, also the summaries of stock nnU-Net."
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = parser("nnssl_compare", ABOUT)
    add = made.add_argument
    place = "folder of a run (a fold, or a model with its folds), of a study, or with summary.json; NAME=PLACE gives "
    place += "a name, and several places of one name are seeds of one method"
    add("places", metavar="PLACE", nargs="*", help=place)
    add("-baseline", metavar="PLACE", help="one of the places or names (default: the only SupervisedTrainer)")
    add("-d", dest="dataset", metavar="ID", help="instead of places: all finished and validated runs of a data set")
    add("-p", dest="plans", help="with -d: plans name, with the tag of the label budget")
    add("-c", dest="configuration", help="with -d: configuration")
    add("-f", dest="fold", help="with -d: only this fold (default: the folds of a run together)")
    add("-metric", default="Dice", help="Dice (default), IoU, nsd, hd95_mm, assd_mm, hd95_vox_pooled or asd_vox")
    add("-all", dest="all_labels", metavar="PLACE", help="the run on all labels: which share of the gap is closed?")
    add("-o", dest="output_folder", metavar="FOLDER", help="write comparison.csv, .json, .png and .svg there")
    add("--choose", action="store_true", help="the simplest method within one standard error of the best validation")
    return made


def body(arguments: argparse.Namespace) -> None:
    """Compare and print the table with its sentences, or the result as strict JSON."""
    if len(arguments.places) == 1 and (Path(arguments.places[0]) / DATABASE).is_file():
        _compare_study(arguments)
        return
    names = ["dataset", "plans", "configuration", "fold", "metric", "output_folder"]
    if arguments.choose:
        from nnssl.comparison.choosing import choose

        refuse_options(arguments, "a method is chosen", {"-baseline": "baseline", "-all": "all_labels"})
        choice = choose(arguments.places, **{name: getattr(arguments, name) for name in names})
        print_json(choice.to_dict()) if arguments.json else print("\n".join(choice.lines))
        return
    from nnssl.comparison.api import compare
    from nnssl.comparison.tables import comparison_text

    names += ["baseline", "all_labels"]
    result = compare(arguments.places, **{name: getattr(arguments, name) for name in names})
    print_json(result.to_dict()) if arguments.json else print(comparison_text(result))
    if arguments.output_folder and not arguments.json:
        print(f"written: {arguments.output_folder}")


def _compare_study(arguments: argparse.Namespace) -> None:
    """Compare the runs of a study, one label budget after the other."""
    from nnssl.comparison.study import compare_study
    from nnssl.comparison.study_tables import check_study_output, study_text, write_study

    meaningless = {"-d": "dataset", "-p": "plans", "-all": "all_labels", "--choose": "choose"}
    refuse_options(arguments, "a study is compared", meaningless)
    folder = None if arguments.output_folder is None else Path(arguments.output_folder)
    if folder is not None:
        check_study_output(folder)
    names = ("baseline", "configuration", "fold", "metric")
    study = compare_study(arguments.places[0], **{name: getattr(arguments, name) for name in names})
    if folder is not None:
        write_study(study, folder)
    print_json(study.to_dict()) if arguments.json else print(study_text(study))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
