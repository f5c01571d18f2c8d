"""The settings class of a method, made from the source of its file without importing torch.

A method's file holds its settings and its algorithm, so importing the file imports torch, which takes seconds. A wrong
`--set` should be refused at once. Settings need only `nnssl.config` and the standard library. Therefore this module
executes the statements that define the settings, and none of the others.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnssl.config import MethodConfig
from nnssl.registry import Method

PACKAGE = "nnssl_trainers."
LIGHT_MODULES = {"nnssl.config", "nnssl.errors", "nnssl.registry"}  # besides the standard library
SETTINGS_ATTRIBUTE = "config_class"


class _NeedsImport(Exception):
    """A name that the settings use comes from a module that this module must not import."""


def settings_without_torch(method: Method) -> type[MethodConfig] | None:
    """Return a class with the fields, ranges and presets of the method's settings.

    The result is a copy of the class `config_class` of the trainer, for checks only. None means that the settings need
    more than `nnssl.config` and the standard library; the file of the method then has to be imported.
    """
    try:
        trainer = next(
            node for node in _definitions(method.module)[method.class_name] if isinstance(node, ast.ClassDef)
        )
        name = next(
            node.value.id
            for node in trainer.body
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Name)
            and any(isinstance(target, ast.Name) and target.id == SETTINGS_ATTRIBUTE for target in node.targets)
        )
        found = _value_of(method.module, name)
    except (_NeedsImport, KeyError, StopIteration, OSError):
        return None
    return found if isinstance(found, type) and issubclass(found, MethodConfig) else None


@cache
def _definitions(module: str) -> dict[str, list[ast.stmt]]:
    """Return name -> the statements of a module that define the name, in their order."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise _NeedsImport(module)
    found: dict[str, list[ast.stmt]] = {}
    for statement in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        for name in _defined_names(statement):
            found.setdefault(name, []).append(statement)
    return found


def _defined_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in statement.names)
    elif isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


@cache
def _value_of(module: str, name: str) -> Any:  # noqa: ANN401 - classes and constants
    """Return what a name means in a module, after executing its definitions and those of the names that they use.

    Raises:
        _NeedsImport: a name comes from a module that may import torch.
        KeyError: the module does not define a name.
    """
    statements = _definitions(module)[name]
    first = statements[0]
    if isinstance(first, ast.ImportFrom) and first.module:
        original = next(alias.name for alias in first.names if name in (alias.asname, alias.name))
        return _imported(first.module, original)
    if isinstance(first, ast.Import):
        raise _NeedsImport(name)
    nodes = [node for statement in statements for node in ast.walk(statement)]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    own = {name} | {node.id for node in names if isinstance(node.ctx, ast.Store)}  # the fields of a class, for example
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    used = {node.id for node in names if not hasattr(builtins, node.id)} - own
    namespace = {"__name__": __name__, **{other: _value_of(module, other) for other in sorted(used)}}
    exec(compile(ast.Module(statements, []), module, "exec", dont_inherit=True), namespace)
    return namespace[name]


def _imported(module: str, name: str) -> Any:  # noqa: ANN401
    if module.startswith(PACKAGE):
        return _value_of(module, name)
    if module not in LIGHT_MODULES and module.partition(".")[0] not in sys.stdlib_module_names:
        raise _NeedsImport(module)
    return getattr(import_module(module), name)
