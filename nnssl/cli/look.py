"""`nnssl_look`: a picture of scans with their masks, or the data sheet of a planned data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, refuse_options, run
from nnssl.errors import UsageError
from nnssl.registry import DEFAULT_METHOD

ABOUT = (
    "Draw scans in three planes with the contours of their masks and the volumes of the labels; or, with -d, what "
    "planning found in the scans of a data set, or, with --views, patches as a method sees them."
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = parser("nnssl_look", ABOUT)
    add = made.add_argument
    add("scan", metavar="SCAN", nargs="?", help="a scan, or a folder of scans")
    add("masks", metavar="MASK", nargs="*", help="masks, or folders of masks with the names of the scans; a line each")
    add("-o", dest="output_file", metavar="FILE.png", help="the picture (default: NAME_look.png in this folder)")
    add("-n", dest="cases", type=int, metavar="N", help="largest number of scans (default: 10), or of patches (4)")
    add("-d", dest="dataset", metavar="ID", help="instead of a scan: the data sheet of a planned data set")
    add("--views", action="store_true", help="with -d: weak and strong view of patches of unlabelled scans")
    add("-tr", dest="trainer", metavar="TRAINER", help=f"with --views: whose views (default: {DEFAULT_METHOD})")
    add("-c", dest="configuration", metavar="CONF", help="with --views: configuration (default: the first one)")
    add("-labelled", "-labeled", metavar="N", help="with -d: the label budget of the plans")
    return made


def body(arguments: argparse.Namespace) -> None:
    """Draw the sheet and say where it stands."""
    from nnssl.reports.data_sheet import data_sheet
    from nnssl.reports.look import look

    if (arguments.scan is None) == (arguments.dataset is None):
        raise UsageError("give a scan, or a data set", run="nnssl_look SCAN MASK -o FILE.png, or nnssl_look -d ID")
    if not arguments.views:
        refuse_options(arguments, "a sheet of scans", {"-tr": "trainer", "-c": "configuration"})
    if arguments.views:
        from nnssl.reports.views_sheet import views_sheet

        if arguments.dataset is None:
            raise UsageError("views are those of a planned data set", run="nnssl_look -d ID --views")
        sheet = views_sheet(
            arguments.dataset, arguments.labelled, arguments.output_file, trainer=arguments.trainer or DEFAULT_METHOD,
            configuration=arguments.configuration, patches=4 if arguments.cases is None else arguments.cases,
        )  # fmt: skip
    elif arguments.dataset is not None:
        sheet = data_sheet(arguments.dataset, arguments.labelled, arguments.output_file)
    else:
        cases = 10 if arguments.cases is None else arguments.cases
        sheet = look(arguments.scan, arguments.masks, output_file=arguments.output_file, cases=cases)
    if arguments.json:
        print_json({"file": str(sheet.file), "cases": sheet.cases, "left_out": sheet.left_out})
        return
    more = f"; {len(sheet.left_out)} more with a larger -n" if sheet.left_out else ""
    kind = "patches" if arguments.views else "scans"
    print(f"sheet: {sheet.file} ({len(sheet.cases)} {kind}{more}); it shows patient data")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
