"""`nnssl_methods`: lists the methods, their papers, needs and settings."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from nnssl.chooser import WHERE_GAINS, WHY_DEFAULT, Pace, in_words, measurement
from nnssl.citations import citation
from nnssl.cli.runtime import parser, print_json, run
from nnssl.config import describe_allowed, format_value
from nnssl.config_source import settings_without_torch
from nnssl.registry import DEFAULT_METHOD, METHODS, Method


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    command = parser("nnssl_methods", "List the training methods.")
    command.add_argument("--verbose", action="store_true", help="also list the settings that --set takes")
    command.add_argument(
        "--env", action="store_true", help="print the export that makes the trainers visible to nnUNetv2_train"
    )
    command.add_argument("-d", metavar="DATASET", help="add seconds per iteration here, from the runs of this data set")
    command.add_argument("--cite", metavar="NAME", help="print the papers of a method or network as BibTeX")
    return command


def body(arguments: argparse.Namespace) -> None:
    """Print the registry, or what the options ask for."""
    variable, folder = "nnUNet_extTrainer", Path(__file__).resolve().parents[1] / "bridge"
    if arguments.cite:
        papers = citation(arguments.cite)
        print_json(papers) if arguments.json else print("\n\n".join(papers.values()))
    elif arguments.env:
        print_json({variable: folder}) if arguments.json else print(f"export {variable}={folder}")
    else:
        found = import_module("nnssl.sweep.estimate").pace_of_dataset(arguments.d) if arguments.d else {}
        print_json([_entry(m, found) for m in METHODS.values()]) if arguments.json else _print(arguments, found)


def _entry(method: Method, found: Mapping[str, Mapping[str, Pace]]) -> dict[str, object]:
    made: dict[str, object] = {
        "name": method.name,
        "class": method.class_name,
        "paper": method.paper,
        "needs": list(method.needs),
    }
    times = {name: dataclasses.asdict(table[method.class_name]) for name, table in found.items()}
    return {**made, **in_words(method.class_name), **({"seconds_per_iteration": times} if found else {})}


def _print(arguments: argparse.Namespace, found: Mapping[str, Mapping[str, Pace]]) -> None:
    for method in METHODS.values():
        print(f"{method.class_name:<20} {method.paper}")
        lines = ["the default of nnssl_train"] if method.class_name == DEFAULT_METHOD else []
        lines += [f"needs: {', '.join(method.needs)}"] if method.needs else []
        lines += [f"{name}: {text}" for name, text in in_words(method.class_name).items()]
        for name, table in found.items():
            pace = table[method.class_name]
            lines.append(f"{name} here: {pace.seconds:.2g} s an iteration, {pace.source}")
        lines += _settings(method) if arguments.verbose else []
        print("\n".join(f"{'':<20} {line}" for line in lines))
    print(f"\ncost: in units of SupervisedTrainer, {measurement()['machine']}\ngain: {WHERE_GAINS}\n{WHY_DEFAULT}")


def _settings(method: Method) -> list[str]:
    config_class, lines = settings_without_torch(method) or method.load().config_class, []
    for item in dataclasses.fields(config_class):
        symbol = f" ({item.metadata['symbol']})" if item.metadata["symbol"] else ""
        default, allowed = format_value(item.default), describe_allowed(config_class, item)
        lines.append(f"--set {item.name}={default}{symbol}: {item.metadata['help']} [{allowed}]")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(make_parser(), body, argv)
