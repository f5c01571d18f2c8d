"""Method settings: frozen dataclasses whose fields are words and carry the paper's symbol."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from nnssl.errors import UsageError

Value = bool | int | float | str
ConfigT = TypeVar("ConfigT", bound="MethodConfig")


def hyper(
    default: Value,
    help_text: str,
    symbol: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:  # noqa: ANN401 - stands as the default of a field of any type, like dataclasses.field
    """Return a dataclass field with a default, the paper's symbol, a one-line meaning and its range (ends included)."""
    meta = {"help": help_text, "symbol": symbol, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class MethodConfig:
    """Base of every method's settings.

    A method with named presets has a field `preset` and `presets`, the values that each of them changes.

    Raises:
        UsageError: a value is outside its range or not among its choices.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {}

    def __post_init__(self) -> None:
        for item in fields(self):
            value, meta = getattr(self, item.name), item.metadata
            low, high, choices = meta.get("low"), meta.get("high"), meta.get("choices")
            outside = isinstance(value, int | float) and (
                not float("-inf") < value < float("inf")
                or (low is not None and value < low)
                or (high is not None and value > high)
            )
            if outside or (choices and value not in choices):
                raise UsageError(
                    f"{item.name}={value} is not allowed",
                    where=f"--set {item.name}={value}",
                    why=f"{meta['help']}; allowed: {allowed(item)}",
                )

    def to_dict(self) -> dict[str, Value]:
        """Return the settings as plain values, for the plans and the checkpoint."""
        return dataclasses.asdict(self)

    def changes(self) -> dict[str, Value]:
        """Return the settings from which `config_with` makes this config: the preset, and what differs from it."""
        values = self.to_dict()
        preset = {"preset": values["preset"]} if "preset" in values else {}
        base, default = config_with(type(self), preset).to_dict(), type(self)().to_dict()
        return {name: value for name, value in values.items() if value != (default if name == "preset" else base)[name]}


_KINDS = {bool: "on or off", int: "a whole number", float: "a number", str: "text"}


def written(value: object) -> str:
    """Return a setting's value as `--set` takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def allowed(setting: dataclasses.Field[Any]) -> str:
    """Return the values that a setting takes, in words."""
    if isinstance(setting.default, bool):
        return "on, off"
    if choices := setting.metadata["choices"]:
        return ", ".join(choices)
    low, high = (None if (end := setting.metadata[name]) is None else f"{end:g}" for name in ("low", "high"))
    if low and high:
        return f"{low} to {high}"
    return f"at least {low}" if low else f"at most {high}" if high else "any"


def config_with(config_class: type[ConfigT], overrides: Mapping[str, Value] | Iterable[str]) -> ConfigT:
    """Return `config_class` with its defaults, changed by `{"name": value}` or by `--set` strings `"name=value"`.

    What is given overrides what a given `preset` changes.

    Raises:
        UsageError: a name is unknown (the valid ones are listed), or a value has the wrong type or range.
    """
    if not isinstance(overrides, Mapping):
        overrides = dict(_split(text) for text in overrides)
    known = {item.name: item for item in fields(config_class)}
    values: dict[str, Value] = {}
    for name, value in overrides.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=2, cutoff=0.8)
            raise UsageError(
                f"unknown setting '{name}' of {config_class.__name__}",
                where=f"--set {name}={value}",
                why=f"valid names: {', '.join(known) or 'none'}",
                run=" or ".join(f"--set {each}={value}" for each in close)
                or "nnssl_methods --verbose lists the settings",
            )
        values[name] = _converted(name, value, known[name].default)
    return config_class(**{**config_class.presets.get(str(values.get("preset")), {}), **values})


def _split(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise UsageError(f"'{text}' is not of the form name=value", where=f"--set {text}")
    return name.strip(), value.strip()


def _converted(name: str, value: Value, default: object) -> Value:
    kind = type(default)
    try:
        if kind is bool:
            return _as_bool(value)
        if isinstance(value, bool):
            raise ValueError
        if kind is int:
            return _as_int(value)
        return float(value) if kind is float else str(value)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{name}={value} is not {_KINDS[kind]}",
            where=f"--set {name}={value}",
            why=f"the default is {written(default)}",
        ) from None


def _as_bool(value: Value) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError


def _as_int(value: int | float | str) -> int:
    """Return a whole number; `1e4` is one."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    number = value if isinstance(value, int) else float(value)
    if number != int(number):
        raise ValueError
    return int(number)
