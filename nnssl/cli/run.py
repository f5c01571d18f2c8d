"""nnssl_run: from a user's own scans to two models, their masks, and whether the unlabelled scans helped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run
from nnssl.errors import UsageError
from nnssl.registry import DEFAULT_METHOD

ABOUT = (
    "Train the supervised baseline and one method on your own scans, segment the test scans, and say whether the "
    "unlabelled scans helped. Every step is an ordinary command, which is printed. Killed at any time, the same "
    "command goes on."
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; the destinations are arguments of `nnssl.run`."""
    made = parser("nnssl_run", ABOUT)
    for flag, dest, needed, text in (
        ("-images", "images", True, "labelled scans: files, globs or folders"),
        ("-labels", "labels", True, "their masks; what the names of scan and mask share names the case"),
        ("-unlabelled -unlabeled", "unlabelled", True, "scans without masks"),
        ("-test", "test", False, "scans to segment at the end (default: the unlabelled scans)"),
        ("-test_labels", "test_labels", False, "masks of the test scans; the methods are then compared on these"),
    ):
        made.add_argument(*flag.split(), dest=dest, nargs="+", required=needed, default=[], metavar="FILE", help=text)
    add = made.add_argument
    add("-o", dest="output_folder", required=True, metavar="STUDY", help="folder of the study; made if need be")
    budget = "laptop: small plan on the CPU; workstation: the plan of nnU-Net (default: by the GPU)"
    add("-budget", default="AUTO", metavar="laptop|workstation|AUTO", help=budget)
    add("-time", metavar="2h", help="for both trainings: 30min, 2h (default: 1h on a laptop, 12h on a workstation)")
    add("-num_iterations", type=int, metavar="N", help="length of each training instead of a time")
    add("-tr", dest="trainer", default=DEFAULT_METHOD, metavar="TRAINER", help="method (default: %(default)s)")
    add("-c", dest="configuration", metavar="CONF", help="2d or 3d_fullres (default: 2d on a laptop, else 3d_fullres)")
    add("-channel", metavar="NAME", help="what the images are; CT has a normalisation of its own")
    add("-label_names", nargs="+", default=[], metavar="NAME", help="names of the labels 1, 2, …")
    add("-patient", metavar="REGEX", help="finds the patient in the name of a case (default: every case is one)")
    add("--yes", action="store_true", help="do not ask before the training")
    return made


def _ask(_: Sequence[str]) -> bool:
    """Return whether the user agrees to the proposal on the screen."""
    print("train now? [y/N] ", end="", flush=True, file=sys.stderr)
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        raise UsageError("nobody can answer here", where="standard input", run="add --yes") from None


def body(arguments: argparse.Namespace) -> None:
    """Take all steps and print the answer."""
    from nnssl.journey.api import run as run_study

    options = {name: value for name, value in vars(arguments).items() if name not in ("json", "yes")}
    result = run_study(**options, agree=None if arguments.yes else _ask)
    if arguments.json:
        print_json(vars(result))
    elif not result.verdict:
        print("nothing was trained; the same command asks again")
    else:
        masks = [f"masks of {name}: {folder}" for name, folder in result.masks.items()]
        print("\n".join([*masks, result.answer, f"report: {result.report}"]))
        print(f"next: nnssl_predict -i IMAGES -o MASKS -m {list(result.models.values())[-1]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
