from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest

import nnssl.cli
from nnssl.cli.help_groups import GROUPS, headings_of
from nnssl.cli.runtime import parser

MODULES = [import_module(f"nnssl.cli.{info.name}") for info in pkgutil.iter_modules(nnssl.cli.__path__)]
PARSERS = {made.prog: made for made in (module.make_parser() for module in MODULES if hasattr(module, "make_parser"))}
SHARED = {"-h", "--json", "--version"}


def options_of(command: str) -> list[str]:
    first = [action.option_strings[0] for action in PARSERS[command]._actions if action.option_strings]
    return [option for option in first if option not in SHARED]


@pytest.mark.parametrize("command", sorted(PARSERS))
def test_commands_with_more_than_ten_options_have_headings(command: str) -> None:
    """Every option that the table lists is one of the command."""
    assert (command in GROUPS) == (len(options_of(command)) > 10)
    assert set(headings_of(command)) <= set(options_of(command))


def test_an_option_stands_once_below_its_heading() -> None:
    text = PARSERS["nnssl_train"].format_help()
    _, _, rest = text.partition("\nvalidation:\n")
    section, _, _ = rest.partition("\n\n")
    named = [line.split()[0] for line in section.splitlines() if line.startswith("  -")]
    assert named == ["--val", "--val_best", "--npz", "--no_val"]
    assert text.count("\n  --val ") == 1
    places = [text.index(f"\n{heading}:\n") for heading in GROUPS["nnssl_train"]]
    assert places == sorted(places)


def test_an_option_without_a_heading_stands_among_the_options() -> None:
    made = parser("nnssl_train", "about")
    made.add_argument("-new", help="an option")
    made.add_argument("-tr", help="a trainer")
    options, _, method = made.format_help().partition("\nmethod:\n")
    assert "  -new NEW" in options
    assert "  -tr TR" in method
    assert made.parse_args(["-new", "1", "-tr", "2"]).tr == "2"
