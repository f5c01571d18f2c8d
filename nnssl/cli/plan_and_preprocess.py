"""nnssl_plan_and_preprocess: check a data set, plan it, and preprocess labelled and unlabelled scans."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run

ABSENT = argparse.SUPPRESS  # the defaults are those of `nnssl.plan`


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; nnU-Net's flags keep their names and meaning, destinations are arguments of `nnssl.plan`."""
    about = "Check a data set, plan it, preprocess labelled and unlabelled scans; nnU-Net's flags keep their meaning."
    command = parser("nnssl_plan_and_preprocess", about)
    for flag, dest, metavar, text in (
        ("-tr", "trainer", "TRAINER", "size the plans for this trainer (default: the heaviest of nnssl_methods)"),
        ("-hardware", "hardware", "cpu", "cpu: a small fixed plan that trains on two cores"),
        ("-budget", "budget", "cpu", "old spelling of -hardware"),
        ("-labelled -labeled", "labelled", "N", "label budget: 7 patients or 10%%; the other labels stay unread"),
        ("-protocol", "protocol", "NAME", "published protocol, acdc-7: its lists as fold 0 and its label budget"),
        ("-setting", "setting", "SETTING", "domains of dataset.json: umda:SOURCE:TARGET ('umda:A->B') or mdg:TARGET"),
        ("-normalisation -normalization", "normalisation", "NAME", "shared (several modalities) or nnunet"),
        ("-f", "fold", "FOLD", "fold that the label budget applies to, or all (default: 0)"),
        ("-pl", "planner", "PLANNER", "nnU-Net's planner, nnUNetPlannerResEncL for example"),
        ("-fpe", "fingerprint_extractor", "EXTRACTOR", "nnU-Net's fingerprint extractor"),
        ("-preprocessor_name", "preprocessor", "PREPROCESSOR", "nnU-Net's preprocessor"),
        ("-overwrite_plans_name", "plans_name", "PLANS", "plans name instead of the planner's own"),
    ):
        command.add_argument(*flag.split(), dest=dest, metavar=metavar, help=text, default=ABSENT)
    for flag, dest, kind, metavar, nargs, text in (
        ("-c", "configurations", str, "NAME", "+", "default: 2d 3d_fullres 3d_lowres, as far as the data need them"),
        ("-np", "num_processes", int, "N", "+", "processes, one number or one for each of -c (default: by CPUs)"),
        ("-pick", "pick", int, "K", None, "with -labelled: another seeded choice of the patients (default: 0)"),
        ("-npfp", "num_processes_fingerprint", int, "N", None, "processes for check and fingerprint"),
        ("-gpu_memory_target", "gpu_memory_target_gb", float, "GB", None, "the card's memory (default: the planner's)"),
        ("-overwrite_target_spacing", "target_spacing_mm", float, "MM", "+", "voxel size of 3d_fullres, 3 numbers"),
    ):
        command.add_argument(flag, dest=dest, type=kind, metavar=metavar, nargs=nargs, help=text, default=ABSENT)
    command.add_argument("-d", nargs="+", required=True, metavar="ID", help="data sets, 27 or Dataset027_ACDC")
    command.add_argument("--verify_dataset_integrity", action="store_true", help="nnU-Net's flag; nnssl always checks")
    command.add_argument("--no_pp", action="store_true", help="stop after the plans")
    command.add_argument("--clean", action="store_true", help="compute fingerprint and preprocessed cases again")
    text = "leave out unlabelled scans that cannot be read or used"
    command.add_argument("--skip_unreadable", action="store_true", default=ABSENT, help=text)
    command.add_argument("--verify", action="store_true", default=ABSENT, help="read unchanged scans again, too")
    command.add_argument("--verbose", action="store_true", help="also print what nnU-Net prints")
    command.add_argument("--no_pbar", action="store_true", help="no progress bars")
    return command


def body(arguments: argparse.Namespace) -> None:
    """Plan each data set and print the plans and the next command."""
    if arguments.verbose:
        logging.getLogger("nnssl").setLevel(logging.DEBUG)
    if arguments.no_pbar:
        os.environ["TQDM_DISABLE"] = "1"
    from nnssl.data.splits import parse_fold
    from nnssl.planning.api import PlanResult, plan
    from nnssl.reports.data_sheet import sheet_after_planning

    switches = ("d", "json", "verify_dataset_integrity", "no_pp", "clean", "verbose", "no_pbar")
    options = {name: value for name, value in vars(arguments).items() if name not in switches}
    options |= {"fold": parse_fold(options.get("fold", "0"), "-f"), "clean": arguments.clean}
    results: list[PlanResult] = [plan(d, run_preprocessing=not arguments.no_pp, **options) for d in arguments.d]
    sheets = [sheet_after_planning(result.plans_path) for result in results]
    if arguments.json:
        print_json({"plans": [dataclasses.asdict(result) for result in results]})
    else:
        lines = [f"sheet of the data: {sheet}" for sheet in sheets if sheet]
        print("\n".join([*lines, *(line for result in results for line in result.lines())]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
