"""`nnssl_convert`: converts a public data set, or a user's own scans, into nnU-Net's raw layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run
from nnssl.dataset_conversion.engine.table import CONVERTERS, Converter

ABOUT = (
    "Convert a public data set or your own scans into nnUNet_raw, with imagesUn and patients. Checks everything first."
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser, with one sub-command for each converter."""
    command = parser("nnssl_convert", ABOUT)
    commands = command.add_subparsers(dest="converter", required=True, metavar="CONVERTER")
    for converter in CONVERTERS.values():
        terms = "" if converter.own_data else f", from: {converter.owner}. Licence: {converter.licence}"
        about = f"Convert {converter.title}{terms}."
        sub = commands.add_parser(converter.name, help=converter.title, description=about, allow_abbrev=False)
        _add_options(sub, converter)
    return command


def _add_options(command: argparse.ArgumentParser, converter: Converter) -> None:
    add = command.add_argument
    add("-i", required=True, metavar="DIR", help="the folder with the files to convert")
    add("-d", required=True, type=int, metavar="ID", help="id of the new data set, 1 to 999")
    add("-o", metavar="NAME", help="name after the id (default: that of the data set)")
    for option in converter.options:
        if option.kind is bool:
            add(option.flag, dest=option.name, action="store_true", help=option.text)
        else:
            flags = [option.flag, *([option.alias] if option.alias else [])]
            add(*flags, dest=option.name, type=option.kind, nargs=option.count, default=option.default,
                metavar=option.metavar, choices=option.choices, help=option.text)  # fmt: skip
    add("-protocol", metavar="NAME", help="published protocol: its test patients to imagesTs, its lists as fold 0")
    geometry = "labels take spacing and origin of their image where size and direction agree"
    add("--fix_geometry", action="store_true", help=geometry)
    add("--skip_unreadable", action="store_true", help="leave out unlabelled scans that cannot be read or used")
    add("--same_scans_are_one_patient", action="store_true", default=converter.same_scans_are_one_patient,
        help="cases with the same voxels count as one patient instead of being an error")  # fmt: skip
    add("--dry_run", action="store_true", help="check everything, write nothing")
    add("-np", type=int, metavar="N", help="processes (default: nnU-Net's, at most one a CPU)")
    text = "print the result, or the error, as one JSON object"
    add("--json", action="store_true", default=argparse.SUPPRESS, help=text)


def body(arguments: argparse.Namespace) -> None:
    """Convert, and print the result, licence, citation and the next command."""
    from nnssl.dataset_conversion.api import convert

    converter = CONVERTERS[arguments.converter]
    result = convert(
        arguments.converter,
        arguments.i,
        arguments.d,
        name=arguments.o,
        options={option.name: getattr(arguments, option.name) for option in converter.options},
        protocol=arguments.protocol,
        fix_geometry=arguments.fix_geometry,
        skip_unreadable=arguments.skip_unreadable,
        same_scans_are_one_patient=arguments.same_scans_are_one_patient,
        dry_run=arguments.dry_run,
        num_processes=arguments.np,
    )
    if arguments.json:
        about = {"converter": converter.name, "licence": converter.licence, "citation": converter.citation}
        print_json({**vars(result), **about, "dataset": result.folder.name})
    else:
        print("\n".join(result.lines()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
