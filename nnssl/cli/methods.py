"""`nnssl_methods`: lists the methods, their papers, needs and settings."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from nnssl.citations import citation
from nnssl.cli.runtime import parser, print_json, run
from nnssl.config import describe_allowed, format_value
from nnssl.config_source import settings_without_torch
from nnssl.registry import DEFAULT_METHOD, METHODS


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    command = parser("nnssl_methods", "List the training methods.")
    command.add_argument("--verbose", action="store_true", help="also list the settings that --set takes")
    command.add_argument(
        "--env", action="store_true", help="print the export that makes the trainers visible to nnUNetv2_train"
    )
    command.add_argument("--cite", metavar="NAME", help="print the papers of a method or network as BibTeX")
    return command


def body(arguments: argparse.Namespace) -> None:
    """Print the registry."""
    variable, folder = "nnUNet_extTrainer", Path(__file__).resolve().parents[1] / "bridge"
    if arguments.cite:
        papers = citation(arguments.cite)
        print_json(papers) if arguments.json else print("\n\n".join(papers.values()))
    elif arguments.env and arguments.json:
        print_json({variable: folder})
    elif arguments.env:
        print(f"export {variable}={folder}")
    elif arguments.json:
        keys = [
            {"name": m.name, "class": m.class_name, "paper": m.paper, "needs": list(m.needs)} for m in METHODS.values()
        ]
        print_json(keys)
    else:
        for method in METHODS.values():
            print(f"{method.class_name:<20} {method.paper}")
            if method.class_name == DEFAULT_METHOD:
                print(f"{'':<20} the default of nnssl_train")
            if method.needs:
                print(f"{'':<20} needs: {', '.join(method.needs)}")
            if arguments.verbose:
                config_class = settings_without_torch(method) or method.load().config_class
                for item in dataclasses.fields(config_class):
                    symbol = f" ({item.metadata['symbol']})" if item.metadata["symbol"] else ""
                    default, allowed = format_value(item.default), describe_allowed(config_class, item)
                    print(f"{'':<20} --set {item.name}={default}{symbol}: {item.metadata['help']} [{allowed}]")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
