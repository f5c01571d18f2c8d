"""`nnssl_pseudo_label`: masks of the unlabelled scans of a data set, for `nnssl_train -pseudo_labels`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    about = "Write masks and scores of the unlabelled scans of a data set, from one trained model or several."
    made = parser("nnssl_pseudo_label", about)
    add = made.add_argument
    add("-d", required=True, metavar="DATASET", help="data set, name or id")
    add("-o", required=True, metavar="DIR", help="empty or new folder for the masks")
    add("-m", nargs="+", default=[], metavar="RUN", help="model or fold folders, averaged; default: the only model")
    add("-keep_share", type=float, default=0.9, help="share of the scans that the filter keeps, default %(default)s")
    add("--disable_tta", action="store_true", help="no averaging over mirrored copies: faster, less accurate")
    add("--no_postprocessing", action="store_true", help="masks as the networks give them, without largest components")
    add("--overwrite", action="store_true", help="replace the masks that are there")
    add("--continue_prediction", "--c", action="store_true", help="keep masks that are there, predict the others")
    add("-device", choices=("cuda", "cpu", "mps"), help="default: the best one there is")
    return made


def _body(arguments: argparse.Namespace) -> None:
    from nnssl.labelling.api import pseudo_label

    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net prints
        result = pseudo_label(
            arguments.d,
            arguments.o,
            models=arguments.m,
            keep_share=arguments.keep_share,
            mirroring=not arguments.disable_tta,
            device=arguments.device,
            overwrite=arguments.overwrite,
            continue_prediction=arguments.continue_prediction,
            postprocessing=not arguments.no_postprocessing,
        )
    if arguments.json:
        print_json(dataclasses.asdict(result))
        return
    print(f"{len(result.cases)} masks, {result.predicted} of them new: {result.folder}")
    print(f"the filter keeps {len(result.kept)}; scores and reasons: {result.scores}")
    print(f"next: nnssl_train {arguments.d} CONFIGURATION FOLD -tr SelfTrainingTrainer -pseudo_labels {result.folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), _body, argv)
