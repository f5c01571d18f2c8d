"""`nnssl_accept`: corrected masks become labels of the data set."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    made = parser("nnssl_accept", "Check corrected masks and take them into labelsTr, with their scans: all or none.")
    add = made.add_argument
    add("folder", metavar="FOLDER", help="folder of nnssl_suggest, or any folder with masks CASE.nii.gz")
    add("-d", metavar="DATASET", help="data set, name or id; default: the one that nnssl_suggest noted")
    add("--unchanged", action="store_true", help="also take masks that are as nnssl_suggest wrote them")
    add("--overwrite", action="store_true", help="replace labels of cases that are labelled already")
    return made


def _body(arguments: argparse.Namespace) -> None:
    from nnssl.annotation.accept import accept

    result = accept(arguments.folder, dataset=arguments.d, unchanged=arguments.unchanged, overwrite=arguments.overwrite)
    if arguments.json:
        print_json(dataclasses.asdict(result))
        return
    for cases, text in (
        (result.accepted, "labelled now"),
        (result.replaced, "label replaced"),
        (result.already, "labelled like this before"),
        (result.unchanged, "left out, as the mask is unchanged (--unchanged takes it)"),
        (result.missing, "suggested, without a mask here"),
    ):
        for case in cases:
            print(f"{case}: {text}")
    print(f"{result.dataset}: {result.labelled} labelled and {result.unlabelled} unlabelled scans")
    if result.accepted or result.replaced:
        print(f"next: nnssl_plan_and_preprocess -d {result.dataset}, with the options of before; then nnssl_train")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), _body, argv)
