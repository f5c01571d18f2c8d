"""`nnssl_look`: a picture of scans with their masks, or the data sheet of a planned data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run
from nnssl.errors import UsageError

ABOUT = (
    "Draw scans in three planes with the contours of their masks and the volumes of the labels; or, with -d, what "
    "planning found in the scans of a data set."
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = parser("nnssl_look", ABOUT)
    add = made.add_argument
    add("scan", metavar="SCAN", nargs="?", help="a scan, or a folder of scans")
    add("masks", metavar="MASK", nargs="*", help="masks, or folders of masks with the names of the scans; a line each")
    add("-o", dest="output_file", metavar="FILE.png", help="the picture (default: NAME_look.png in this folder)")
    add("-n", dest="cases", type=int, default=10, metavar="N", help="largest number of scans (default: %(default)s)")
    add("-d", dest="dataset", metavar="ID", help="instead of a scan: the data sheet of a planned data set")
    add("-labelled", "-labeled", metavar="N", help="with -d: the label budget of the plans")
    return made


def body(arguments: argparse.Namespace) -> None:
    """Draw the sheet and say where it stands."""
    from nnssl.reports.data_sheet import data_sheet
    from nnssl.reports.look import look

    if (arguments.scan is None) == (arguments.dataset is None):
        raise UsageError("give a scan, or a data set", run="nnssl_look SCAN MASK -o FILE.png, or nnssl_look -d ID")
    if arguments.dataset is not None:
        sheet = data_sheet(arguments.dataset, arguments.labelled, arguments.output_file)
    else:
        sheet = look(arguments.scan, arguments.masks, output_file=arguments.output_file, cases=arguments.cases)
    if arguments.json:
        print_json({"file": str(sheet.file), "cases": sheet.cases, "left_out": sheet.left_out})
        return
    more = f"; {len(sheet.left_out)} more with a larger -n" if sheet.left_out else ""
    print(f"sheet: {sheet.file} ({len(sheet.cases)} scans{more}); it shows patient data")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
