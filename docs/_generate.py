"""Pages made from the code: commands from their parsers, methods from the registry, settings from the dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

from _gain import write_gain

import nnssl.cli
import nnssl.ingredients
from nnssl.chooser import WHERE_GAINS, WHY_DEFAULT, costs, in_words, measurement
from nnssl.config import MethodConfig, describe_allowed, format_value
from nnssl.data.protocols import FOLDER, read_protocol
from nnssl.dataset_conversion.engine.table import CONVERTERS
from nnssl.registry import DEFAULT_METHOD, METHODS, Method

COMMANDS = (
    "run",
    "phantom",
    "convert",
    "plan_and_preprocess",
    "train",
    "sweep",
    "runs",
    "predict",
    "pseudo_label",
    "pseudo_quality",
    "suggest",
    "accept",
    "evaluate",
    "compare",
    "find_best",
    "export",
    "install",
    "report",
    "look",
    "methods",
    "clean",
)  # others follow these


def write_pages(docs: Path) -> None:
    """Write every generated page into `docs/generated`.

    Raises:
        FileNotFoundError: a registered method has no page in `docs/methods`.
    """
    folder = docs / "generated"
    folder.mkdir(exist_ok=True)
    pages = {"cli": commands(), "methods": methods_table(), "ingredients": ingredients()}
    pages |= {"converters": converters_table(), "protocols": protocols_table()}
    for method in METHODS.values():
        page = docs / "methods" / f"{method.name}.md"
        if not page.is_file():
            raise FileNotFoundError(f"{method.class_name} has no documentation page {page}")
        pages[f"settings_{method.name}"] = settings_table(method) + "\n" + presets_table(method)
    write_gain(docs / "results.md", folder)
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def commands() -> str:
    """Return one section a command."""
    os.environ["COLUMNS"] = "90"
    modules = [import_module(f"nnssl.cli.{name}") for name in _modules(nnssl.cli)]
    parsers = {module.__name__.rpartition(".")[2]: module.make_parser() for module in modules if _has_parser(module)}
    order = [name for name in COMMANDS if name in parsers] + [name for name in parsers if name not in COMMANDS]
    return "\n".join(command(parsers[name]) for name in order)


def command(parser: argparse.ArgumentParser) -> str:
    """Return the section of one command: description, usage, table of arguments."""
    parser.color = False
    prefix = "usage: "
    usage = parser.format_usage().removeprefix(prefix).replace("\n" + " " * len(prefix), "\n")
    rows = [[_syntax(action), _meaning(action, parser)] for action in parser._actions]
    described = parser.description or ""
    text = f"## {parser.prog}\n\n{described}\n\n```text\n{usage}```\n\n{_table(['argument', 'meaning'], rows)}"
    return text + "".join(map(_sub_commands, parser._actions))


def _sub_commands(action: argparse.Action) -> str:
    """Return the table of a command's sub-commands: their own options, after those that they share."""
    if not isinstance(action, argparse._SubParsersAction):
        return ""
    tables = {
        name: {(_syntax(option), _meaning(option, sub)) for option in sub._actions}
        for name, sub in action.choices.items()
    }
    shared = set.intersection(*tables.values())
    order = [(_syntax(option), _meaning(option, sub)) for sub in action.choices.values() for option in sub._actions]
    rows = [[f"all: {option}", text] for option, text in dict.fromkeys(order) if (option, text) in shared]
    for name, sub in action.choices.items():
        own = [(_syntax(option), _meaning(option, sub)) for option in sub._actions]
        rows += [[f"`{name}`: {option}", text] for option, text in own if (option, text) not in shared]
    return "\n" + _table(["sub-command: option", "meaning"], rows)


def converters_table() -> str:
    """Return the table of the converters; the links work from `docs/conversion`."""
    rows = [
        [f"[`{entry.name}`]({entry.name}.md)", entry.title, entry.owner, entry.licence] for entry in CONVERTERS.values()
    ]
    return _table(["`nnssl_convert`", "data", "owner", "licence"], rows)


def protocols_table() -> str:
    """Return the table of the published protocols."""
    protocols = [read_protocol(path) for path in sorted(FOLDER.glob("*.json"))]
    names = [[*protocol.names, *protocol.short_names.values()] for protocol in protocols]
    rows = [[", ".join(f"`{name}`" for name in each), p.source] for each, p in zip(names, protocols, strict=True)]
    return _table(["`-protocol`", "source"], rows)


def methods_table() -> str:
    """Return the tables of the methods: papers, and what helps to choose; the links work from `docs/methods`."""
    papers = [
        [f"[`{m.class_name}`]({m.name}.md){_default_mark(m)}", m.paper, ", ".join(m.needs) or "–", _networks(m)]
        for m in METHODS.values()
    ]
    made, measured = costs(), measurement()
    words = {m.class_name: in_words(m.class_name) for m in METHODS.values()}
    choice = [[f"`{name}`", text["use"], text["gain"], text["weaknesses"]] for name, text in words.items()]
    relative = [
        [f"`{name}`", *(f"{value:g}" for table in made.values() for value in dataclasses.astuple(table[name]))]
        for name in words
    ]
    commands = "\n".join([*measured["data"].split("; "), measured["command"]])
    columns = [f"`{name}`: {what}" for name in made for what in ("time", "memory")]
    return "\n".join(
        [
            _table(["`-tr`", "paper", "needs", "networks"], papers),
            f"{WHY_DEFAULT}\n",
            _table(["`-tr`", "when to use it", "measured gain", "weaknesses"], choice),
            f"Gain: {WHERE_GAINS}; [](../results.md) has the runs. A gain of one run says little.\n",
            _table(["`-tr`", *columns], relative),
            "Time of an iteration with unlabelled patches and the memory of its activations, all trained networks "
            "together, in units of nnU-Net's supervised step at the same plan, measured in one run on "
            f"{measured['machine']}:\n\n```bash\n" + commands + "\n```\n",
        ]
    )


def _default_mark(method: Method) -> str:
    return ", the default" if method.class_name == DEFAULT_METHOD else ""


def settings_table(method: Method) -> str:
    """Return the settings that `--set` takes for one method."""
    config_class = method.load().config_class
    items = dataclasses.fields(config_class)
    shared = [item for item in items if item.name in {field.name for field in dataclasses.fields(MethodConfig)}]
    rows = [
        [
            f"`{item.name}`",
            item.metadata["symbol"] or "–",
            f"`{format_value(item.default)}`",
            describe_allowed(config_class, item),
            item.metadata["help"],
        ]
        for item in [*(item for item in items if item not in shared), *shared]
    ]
    return _table(["setting", "symbol", "default", "range", "meaning"], rows)


def presets_table(method: Method) -> str:
    """Return what each preset of a method changes."""
    presets = method.load().config_class.presets
    rows = [
        [
            f"`preset={name}`",
            ", ".join(f"`{key}={format_value(value)}`" for key, value in values.items()) or "see above",
        ]
        for name, values in presets.items()
    ]
    return _table(["preset", "settings"], rows)


def ingredients() -> str:
    """Return one section for each file of `nnssl.ingredients`."""
    modules = [f"nnssl.ingredients.{name}" for name in _modules(nnssl.ingredients)]
    return "\n".join(f"### {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n" for name in modules)


def _modules(package: ModuleType) -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__))


def _has_parser(module: ModuleType) -> bool:
    return hasattr(module, "make_parser")


def _syntax(action: argparse.Action) -> str:
    words = ", ".join(f"`{text}`" for text in action.option_strings)
    if action.nargs == 0:
        return words
    default = action.dest.upper() if action.option_strings else action.dest
    names = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else default)
    names = " ".join(names) if isinstance(names, tuple) else names
    value = f"{names} [{names} ...]" if action.nargs == "+" else names
    if isinstance(action.nargs, int) and not isinstance(action.metavar, tuple):
        value = " ".join([names] * action.nargs)
    return f"{words} `{value}`" if words else f"`{value}`"


def _meaning(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return f"{text} (required)" if action.option_strings and action.required else text


def _networks(method: Method) -> str:
    counted = ((method.students, "trained"), (method.teachers, "teacher"))
    return ", ".join(f"{count} {kind}" for count, kind in counted if count)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
