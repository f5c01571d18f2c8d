"""`nnssl_suggest`: which unlabelled scans to label next, with masks to correct."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    about = "Choose unlabelled scans to label next, and write masks to correct in 3D Slicer or ITK-SNAP."
    made = parser("nnssl_suggest", about)
    add = made.add_argument
    add("-d", required=True, metavar="DATASET", help="data set, name or id")
    add("-o", required=True, metavar="DIR", help="empty or new folder for the masks")
    add("-n", type=int, default=5, metavar="COUNT", help="number of scans, default %(default)s")
    add(
        "-m",
        nargs="+",
        default=[],
        metavar="RUN",
        help="model or fold folders, or their names; default: the only model",
    )
    add(
        "-strategy",
        default="random",
        help="random (scans in which the model sees a structure), entropy, or class_entropy; default %(default)s",
    )
    add("-seed", type=int, default=0, help="of the random choice, default %(default)s")
    add("--disable_tta", action="store_true", help="no averaging over mirrored copies: faster")
    add("-device", choices=("cuda", "cpu", "mps"), help="default: the best one there is")
    return made


def _body(arguments: argparse.Namespace) -> None:
    from nnssl.annotation.suggest import suggest

    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net prints
        result = suggest(
            arguments.d,
            arguments.o,
            count=arguments.n,
            models=arguments.m,
            strategy=arguments.strategy,
            seed=arguments.seed,
            mirroring=not arguments.disable_tta,
            device=arguments.device,
        )
    if arguments.json:
        print_json(dataclasses.asdict(result))
        return
    for case in result.cases:
        print(case)
    for note in result.notes:
        print(f"note: {note}")
    print(f"{len(result.masks)} masks to correct, label colours for 3D Slicer and ITK-SNAP: {result.folder}")
    print(f"next: correct the masks in place, then nnssl_accept {result.folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), _body, argv)
