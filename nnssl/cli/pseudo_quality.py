"""`nnssl_pseudo_quality`: which masks of scans without a reference to accept, look at, or drop."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    about = "Score the masks that trained models give to scans without a reference: accept, look, drop; worst first."
    made = parser("nnssl_pseudo_quality", about)
    add = made.add_argument
    add("-m", nargs="+", required=True, metavar="RUN", help="model or fold folders, or their names; several are better")
    add("-i", required=True, metavar="DIR", help="folder of scans, CASE_0000.nii.gz")
    add("-o", required=True, metavar="DIR", help="empty or new folder for scores.csv and pictures")
    add("-accept", type=float, default=0.85, help="Dice from which on a mask is accepted, default %(default)s")
    add("-drop", type=float, default=0.6, help="Dice below which a mask is dropped, default %(default)s")
    add("--disable_tta", action="store_true", help="no averaging over mirrored copies: faster")
    add("--no_calibration", action="store_true", help="do not predict held-out labelled cases")
    add("--overwrite", action="store_true", help="replace results in the folder")
    add("-device", choices=("cuda", "cpu", "mps"), help="default: the best one there is")
    return made


def _body(arguments: argparse.Namespace) -> None:
    from nnssl.annotation.quality import pseudo_quality

    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net prints
        result = pseudo_quality(
            arguments.m,
            arguments.i,
            arguments.o,
            accept=arguments.accept,
            drop=arguments.drop,
            mirroring=not arguments.disable_tta,
            device=arguments.device,
            calibration=not arguments.no_calibration,
            overwrite=arguments.overwrite,
        )
    if arguments.json:
        print_json(dataclasses.asdict(result))
        return
    counts = Counter(result.decisions.values())
    print(
        f"{len(result.decisions)} scans: " + ", ".join(f"{counts[name]} {name}" for name in ("accept", "look", "drop"))
    )
    print(f"compared: {result.members} ({', '.join(result.names)})")
    print(f"calibration: {result.calibration}")
    for note in result.notes:
        print(f"note: {note}")
    print(f"next: open {result.scores} and the pictures beside it, the worst first")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), _body, argv)
