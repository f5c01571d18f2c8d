"""nnssl_clean: list what no plans refer to below nnUNet_preprocessed, and remove it with --yes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    about = "List preprocessed cases and temporary files that no plans refer to, with sizes; --yes removes them. "
    made = parser("nnssl_clean", about + "Raw data, results, and what a running command holds are never touched.")
    made.add_argument("-d", dest="dataset", metavar="ID", help="only this data set, name or id")
    made.add_argument("--yes", action="store_true", help="remove what the command lists without this option")
    return made


def body(arguments: argparse.Namespace) -> None:
    """Print what is left over, and the command that removes it."""
    from nnssl.cleaning.api import clean

    result = clean(arguments.dataset, remove=arguments.yes)
    if arguments.json:
        print_json(result.to_dict())
        return
    print("\n".join(result.lines()))
    if result.left_overs and not result.removed:
        only = f" -d {arguments.dataset}" if arguments.dataset else ""
        print(f"run:  nnssl_clean{only} --yes")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
