"""`nnssl_export`: a trained model as one file without pickle and code."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    made = parser("nnssl_export", "Write a trained model into one file without pickle, code and names of cases.")
    add = made.add_argument
    add("model", metavar="MODEL", help="model or fold folder, as a path or as its name below nnUNet_results")
    add("-o", required=True, metavar="FILE", help="the bundle, a .zip file")
    add("-f", nargs="+", metavar="FOLD", help="folds, default: all with a final checkpoint")
    add("--onnx", metavar="FILE", help="also write the network of one fold as ONNX file for one patch")
    return made


def _body(arguments: argparse.Namespace) -> None:
    from nnssl.bundles.api import export_model

    with contextlib.redirect_stdout(sys.stderr):  # torch prints while it translates
        result = export_model(arguments.model, arguments.o, folds=arguments.f, onnx=arguments.onnx)
    if arguments.json:
        print_json(dataclasses.asdict(result))
        return
    print(f"{result.file}: folds {' '.join(result.folds)} of {result.model.name}, {result.bytes / 1e6:.1f} MB")
    print(f"SHA-256 {result.sha256}")
    print("not in the bundle: " + "; ".join(result.removed))
    if result.onnx:
        print(f"{result.onnx}: logits as torch's, largest difference {result.onnx_difference:.2g}")
    print(f"next, on the other machine: nnssl_install {result.file.name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), _body, argv)
