"""Entries of the table of names inside nnU-Net that nnssl relies on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["callable", "value", "attribute", "text"]


@dataclass(frozen=True)
class HostName:
    """One name that nnssl relies on.

    Attributes:
        owner: dotted path of the module, class or function that has the name.
        name: the name.
        kind: `callable` (function, method or class), `value` (property, constant or class attribute), `attribute` (the
            class assigns it to `self`), or `text` (the source of the owner contains it as a string).
        parameters: the parameters, without `self`, that a callable begins with; further ones must have a default. None
            where nnssl does not call it, and for the other kinds.
        used_in: dotted paths of the modules that use the name.
        reason: what these modules use the name for.
    """

    owner: str
    name: str
    kind: Kind
    parameters: tuple[str, ...] | None
    used_in: tuple[str, ...]
    reason: str


def callables(owner: str, used_in: str, reason: str, **parameters: str | None) -> Iterator[HostName]:
    """Yield callables of one owner; each keyword is a name with its parameters, separated by blanks."""
    for name, text in parameters.items():
        listed = None if text is None else tuple(text.split())
        yield HostName(owner, name, "callable", listed, tuple(used_in.split()), reason)


def values(owner: str, used_in: str, reason: str, names: str) -> Iterator[HostName]:
    """Yield properties, constants or class attributes of one owner; blanks separate the names."""
    return _names(owner, "value", used_in, reason, names)


def attributes(owner: str, used_in: str, reason: str, names: str) -> Iterator[HostName]:
    """Yield attributes that the class `owner` assigns to `self`; blanks separate the names."""
    return _names(owner, "attribute", used_in, reason, names)


def texts(owner: str, used_in: str, reason: str, names: str) -> Iterator[HostName]:
    """Yield strings in the source of `owner`, keys for example; blanks separate the strings."""
    return _names(owner, "text", used_in, reason, names)


def _names(owner: str, kind: Kind, used_in: str, reason: str, names: str) -> Iterator[HostName]:
    for name in names.split():
        yield HostName(owner, name, kind, None, tuple(used_in.split()), reason)
