"""`nnssl_evaluate`: predictions against references."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from nnssl.cli.runtime import parser, run


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = parser(
        "nnssl_evaluate",
        "Compare predictions with references: Dice, Jaccard, HD95, ASSD and NSD for each structure, with missed and "
        "spurious structures counted. Writes summary.json (nnU-Net's keys and more) into the prediction folder.",
    )
    made.add_argument("gt_folder", help="folder with the reference label files")
    made.add_argument("pred_folder", help="folder with the predicted label files, of the same names")
    made.add_argument("-djfile", metavar="FILE", help="dataset.json (default: the one in pred_folder)")
    made.add_argument("-pfile", metavar="FILE", help="plans.json (default: the one in pred_folder)")
    made.add_argument("-o", metavar="FILE", help="output file (default: pred_folder/summary.json)")
    made.add_argument("-np", metavar="N", type=int, help="number of processes (default: nnU-Net's, at most one a core)")
    made.add_argument("--chill", action="store_true", help="do not stop when references have no prediction")
    made.add_argument("--ignore_placement", action="store_true", help="let origins and directions differ")
    made.add_argument("-l", metavar="LABEL", type=int, nargs="+", help="labels to score (default: dataset.json's)")
    made.add_argument("-il", metavar="LABEL", type=int, help="with -l: reference voxels with this label are not scored")
    made.add_argument(
        "-protocol",
        choices=("standard", "paper"),
        default="standard",
        help="'paper' adds HD95 and ASD in voxels, as the semi-supervised papers report them",
    )
    made.add_argument(
        "-nsd_tolerance_mm", metavar="MM", type=float, default=1.0, help="tolerance of NSD (default: 1.0 mm)"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)


def body(arguments: argparse.Namespace) -> None:
    """Evaluate and print the table, or the summary as strict JSON."""
    from nnssl.evaluation.api import evaluate
    from nnssl.evaluation.tables import results_table

    result = evaluate(
        arguments.gt_folder,
        arguments.pred_folder,
        dataset_json=arguments.djfile,
        plans_json=arguments.pfile,
        labels=arguments.l,
        ignore_label=arguments.il,
        same_placement=not arguments.ignore_placement,
        output_file=arguments.o,
        num_processes=arguments.np,
        chill=arguments.chill,
        protocol=arguments.protocol,
        nsd_tolerance_mm=arguments.nsd_tolerance_mm,
    )
    if arguments.json:
        content = {"summary_file": str(result.summary_file), **result.summary}
        print(json.dumps(_without_nan(content), allow_nan=False))
    else:
        print(f"{results_table(result)}\nwritten: {result.summary_file}")


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - JSON is any nesting of plain values
    """Return the value with null for NaN: strict JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
