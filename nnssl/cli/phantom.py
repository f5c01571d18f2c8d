"""`nnssl_phantom`: write a small synthetic data set to try everything on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnssl.cli.runtime import parser, print_json, run


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    command = parser(
        "nnssl_phantom",
        "Write a small synthetic 3-D data set with labelled, unlabelled and test scans into nnUNet_raw.",
    )
    command.add_argument("-d", type=int, required=True, metavar="ID", help="id of the new data set, 1 to 999")
    command.add_argument("-n", default="Phantom", metavar="NAME", help="name of the data set (default: %(default)s)")
    command.add_argument("-labelled", "-labeled", type=int, default=6, help="labelled scans (default: %(default)s)")
    command.add_argument("-unlabelled", "-unlabeled", type=int, default=24, help="scans without labels (default: 24)")
    command.add_argument("-test", type=int, default=8, help="test scans, labelled in labelsTs (default: %(default)s)")
    command.add_argument(
        "-shape",
        type=int,
        nargs=3,
        default=(40, 48, 48),
        metavar=("D", "H", "W"),
        help="mean size of a scan in voxels; the sizes vary by 10 %% (default: 40 48 48)",
    )
    command.add_argument(
        "-variety",
        type=float,
        default=1.0,
        help="how much more unlabelled and test scans vary in contrast and noise than labelled ones (default: 1)",
    )
    text = "scanners, 1 to 4; the numbers of scans above are then those of each scanner (default: %(default)s)"
    command.add_argument("-domains", type=int, default=1, help=text)
    command.add_argument("-seed", type=int, default=0, help="same seed, same voxels (default: %(default)s)")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier phantom of this id and name")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), _write, argv)


def _write(arguments: argparse.Namespace) -> None:
    from nnssl.data.phantom import write_phantom
    from nnssl.names import RAW_VARIABLE
    from nnssl.system.files import environment_folder

    folder = write_phantom(
        environment_folder(RAW_VARIABLE),
        arguments.d,
        name=arguments.n,
        labelled=arguments.labelled,
        unlabelled=arguments.unlabelled,
        test=arguments.test,
        shape=tuple(arguments.shape),
        variety=arguments.variety,
        seed=arguments.seed,
        overwrite=arguments.overwrite,
        domains=arguments.domains,
    )
    if arguments.json:
        print_json({"folder": folder, "dataset": folder.name})
        return
    each, setting = (" of each domain", " -setting umda:A:B") if arguments.domains > 1 else ("", "")
    print(
        f"{folder}\n"
        f"  {arguments.labelled} labelled, {arguments.unlabelled} unlabelled, {arguments.test} test scans{each}\n"
        f"next: nnssl_plan_and_preprocess -d {arguments.d} -hardware cpu{setting}"
    )
