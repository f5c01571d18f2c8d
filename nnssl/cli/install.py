"""`nnssl_install`: a model from a bundle, or from an export of stock nnU-Net, into nnUNet_results."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    about = "Check a bundle and install its model into nnUNet_results: all of it, or nothing. No code of it is run."
    made = parser("nnssl_install", about)
    made.add_argument("file", metavar="FILE", help="bundle of nnssl_export, or .zip of nnUNetv2_export_model_to_zip")
    made.add_argument("--overwrite", action="store_true", help="replace a model of the same name")
    return made


def _body(arguments: argparse.Namespace) -> None:
    from nnssl.bundles.api import install_model

    result = install_model(arguments.file, overwrite=arguments.overwrite)
    if arguments.json:
        print_json(dataclasses.asdict(result))
        return
    for model in result.models:
        print(f"installed: {model}")
    for note in result.notes:
        print(f"note: {note}")
    print(f"next: nnssl_predict -m {result.models[0]} -i IMAGES -o MASKS")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), _body, argv)
