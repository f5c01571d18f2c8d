"""`nnssl_evaluate`: predictions against references."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from nnssl.cli.runtime import parser, print_json, run
from nnssl.errors import UsageError

ABOUT = (
    "Compare predictions with references: Dice, Jaccard, HD95, ASSD and NSD for each structure, with missed and "
    "spurious structures counted. Writes summary.json (nnU-Net's keys and more) into the prediction folder. Without "
    "folders, -d -tr -p -c -f -tag name a run whose validation masks are scored again."
)
NAMES = {"-d": "dataset", "-tr": "trainer", "-p": "plans", "-c": "configuration", "-f": "fold", "-tag": "tag"}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = parser("nnssl_evaluate", ABOUT)
    add = made.add_argument
    add("gt_folder", nargs="?", help="folder with the reference label files")
    add("pred_folder", nargs="?", help="folder with the predicted label files, of the same names")
    for flag, name in NAMES.items():
        add(flag, dest=name, help=f"without folders: {name} of the run")
    add("-djfile", metavar="FILE", help="dataset.json (default: the one in pred_folder)")
    add("-pfile", metavar="FILE", help="plans.json (default: the one in pred_folder)")
    add("-o", metavar="FILE", help="output file (default: pred_folder/summary.json)")
    add("-np", metavar="N", type=int, help="number of processes (default: nnU-Net's, at most one a core)")
    add("--chill", action="store_true", help="do not stop when references have no prediction")
    placement = "let origins and directions differ; masks on flipped axes are always brought to the reference's"
    add("--ignore_placement", action="store_true", help=placement)
    add("-l", metavar="LABEL", type=int, nargs="+", help="labels to score (default: dataset.json's)")
    add("-il", metavar="LABEL", type=int, help="with -l: reference voxels with this label are not scored")
    metrics = "'paper' adds HD95 and ASD in voxels, as the semi-supervised papers report them (old name: -protocol)"
    add("-metrics", "-protocol", choices=("standard", "paper"), default="standard", help=metrics)
    add("-nsd_tolerance_mm", metavar="MM", type=float, default=1.0, help="tolerance of NSD (default: 1.0 mm)")
    return made


def body(arguments: argparse.Namespace) -> None:
    """Evaluate and print the table, or the summary as strict JSON."""
    names = {name: value for name in NAMES.values() if (value := getattr(arguments, name)) is not None}
    folders = [folder for folder in (arguments.gt_folder, arguments.pred_folder) if folder is not None]
    if len(folders) == 1 or bool(folders) == bool(names):
        raise UsageError(
            "give the folders of references and predictions, or the names of a run",
            run="nnssl_evaluate LABELS PREDICTIONS, or nnssl_evaluate -d 27 -tr TRAINER -f 0 (nnssl_runs lists runs)",
        )
    from nnssl.evaluation.api import evaluate
    from nnssl.evaluation.tables import results_table
    from nnssl.training.runs import evaluate_run

    options: dict[str, Any] = {
        "dataset_json": arguments.djfile,
        "plans_json": arguments.pfile,
        "labels": arguments.l,
        "ignore_label": arguments.il,
        "output_file": arguments.o,
        "num_processes": arguments.np,
        "metrics": arguments.metrics,
        "nsd_tolerance_mm": arguments.nsd_tolerance_mm,
    }
    if folders:
        placement = {"same_placement": not arguments.ignore_placement, "chill": arguments.chill}
        result = evaluate(arguments.gt_folder, arguments.pred_folder, **options, **placement)
    else:
        result = evaluate_run(**names, **options)
    if arguments.json:
        print_json({"summary_file": str(result.summary_file), **result.summary})
    else:
        print(f"{results_table(result)}\nwritten: {result.summary_file}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
