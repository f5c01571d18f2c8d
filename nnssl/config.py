"""The settings of methods: frozen dataclasses whose fields have words as names and carry the paper's symbols."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from nnssl.errors import UsageError

Value = bool | int | float | str | None  # None is written as `auto`
ConfigT = TypeVar("ConfigT", bound="MethodConfig")
DEFAULT_PRESET = "default"
NETWORK_KEY = "network"  # in the metadata of a setting that names a network: further words that it takes


def hyper(
    default: Value,
    help_text: str,
    symbol: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:  # noqa: ANN401 - stands as the default of a field of any type, like dataclasses.field
    """Return a dataclass field for one setting.

    Args:
        default: the default; None is written as `auto`, and the network or the method then decides the number.
        help_text: the meaning of the setting in one line.
        symbol: the symbol and the equation in the paper.
        low: the smallest allowed number, or None.
        high: the largest allowed number, or None.
        choices: the allowed words; empty allows every value of the right type.
    """
    kind = float if default is None else type(default)
    meta = {"help": help_text, "symbol": symbol, "kind": kind, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=meta)


def hyper_network(default: str, help_text: str, *, others: tuple[str, ...] = ()) -> Any:  # noqa: ANN401 - as `hyper`
    """Return a dataclass field for the name of a network; `nnssl.registry.check_networks` checks the name.

    Args:
        default: the default.
        help_text: the meaning of the setting in one line.
        others: further words that the setting takes instead of a network.
    """
    return field(default=default, metadata={**hyper(default, help_text).metadata, NETWORK_KEY: others})


def redefine(
    config_class: type[MethodConfig], name: str, default: Value, *, symbol: str = "", choices: tuple[str, ...] = ()
) -> Any:  # noqa: ANN401 - as `hyper`
    """Return a field that gives an inherited setting another default; meaning and range stay those of the base class.

    Args:
        config_class: the base class that defines the setting.
        name: name of the setting.
        default: the new default.
        symbol: the new symbol; empty keeps the inherited symbol.
        choices: the new allowed words; empty keeps the inherited words.
    """
    meta = dict(next(item.metadata for item in fields(config_class) if item.name == name))
    if symbol:
        meta["symbol"] = symbol
    if choices:
        meta["choices"] = choices
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class MethodConfig:
    """The settings of every method: preset, network, optimiser and augmentation; the defaults are nnU-Net's.

    Attributes:
        presets: the presets of a method besides `default`; each maps settings to the values that it gives them.

    Raises:
        UsageError: a value is outside its range, or is not one of the allowed words.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {}

    preset: str = hyper(DEFAULT_PRESET, "named group of settings; a setting that is given itself wins")
    network: str = hyper_network(
        "plan",
        "network: plan (nnU-Net's), residual (nnU-Net's with residual encoder), bcp (unet_bcp in 2-D, vnet in 3-D), "
        "another of nnssl.registry.NETWORKS, or the path of a class; options: mamba_unet:width=24,state_size=4",
    )
    optimizer: str = hyper(
        "auto", "optimiser; auto: what the network declares, else sgd", choices=("auto", "sgd", "adamw")
    )
    learning_rate: float | None = hyper(
        None, "first learning rate; auto: what the network declares, else 0.01 for sgd and 5e-4 for adamw", low=0.0
    )
    learning_rate_schedule: str = hyper(
        "poly",
        "course of the learning rate: (1 - t/T)^0.9, constant, steps, or half a cosine to 0",
        choices=("poly", "constant", "step", "cosine"),
    )
    learning_rate_factor: float = hyper(0.1, "factor of one step of the schedule `step`", low=0.0, high=1.0)
    learning_rate_interval: float = hyper(
        0.4, "share of the run between two steps of the schedule `step`", low=1e-6, high=1.0
    )
    momentum: float = hyper(0.99, "momentum of sgd; adamw always has 0.9 as its first decay", low=0.0, high=0.9999)
    nesterov: bool = hyper(True, "Nesterov's form of the momentum of sgd")
    weight_decay: float | None = hyper(
        None, "weight decay; auto: what the network declares, else 3e-5 for sgd and 0.05 for adamw", low=0.0
    )
    augmentation: str = hyper(
        "nnunet",
        "augmentation of nnU-Net, or of the papers: crops, flips, 90° turns, rotations up to 20°",
        choices=("nnunet", "paper"),
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value, meta = getattr(self, item.name), item.metadata
            low, high, choices = meta.get("low"), meta.get("high"), choices_of(type(self), item)
            if value is None and item.default is not None:
                raise UsageError(f"{item.name} has no automatic value", where=f"--set {item.name}=auto")
            outside = isinstance(value, int | float) and (
                not float("-inf") < value < float("inf")
                or (low is not None and value < low)
                or (high is not None and value > high)
            )
            if outside or (choices and value not in choices):
                raise UsageError(
                    f"{item.name}={value} is not allowed",
                    where=f"--set {item.name}={value}",
                    why=f"{meta['help']}; allowed: {describe_allowed(type(self), item)}",
                )

    def to_dict(self) -> dict[str, Value]:
        """Return the settings as plain values, for the plans and the checkpoint."""
        return dataclasses.asdict(self)

    def changes(self) -> dict[str, Value]:
        """Return the settings that `config_with` needs for this config: the preset, and each value that differs."""
        values = self.to_dict()
        base = config_with(type(self), {"preset": self.preset}).to_dict() | {"preset": DEFAULT_PRESET}
        return {name: value for name, value in values.items() if value != base[name]}


_KINDS = {bool: "on or off", int: "a whole number", float: "a number", str: "text"}


def format_value(value: object) -> str:
    """Return the value of a setting in the form that `--set` takes."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return "auto" if value is None else str(value)


def choices_of(config_class: type[MethodConfig], setting: dataclasses.Field[Any]) -> tuple[str, ...]:
    """Return the allowed words of a setting; empty where the setting takes a number or any text."""
    if setting.name == "preset":
        return (DEFAULT_PRESET, *config_class.presets)
    choices: tuple[str, ...] = setting.metadata["choices"]
    return choices


def describe_allowed(config_class: type[MethodConfig], setting: dataclasses.Field[Any]) -> str:
    """Return the allowed values of a setting as text for a user."""
    if isinstance(setting.default, bool):
        return "on, off"
    choices = choices_of(config_class, setting)
    if choices:
        return ", ".join(choices)
    text = _describe_range(setting.metadata["low"], setting.metadata["high"])
    return f"auto, {text}" if setting.default is None else text


def _describe_range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "any"
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def config_with(config_class: type[ConfigT], overrides: Mapping[str, Value] | Iterable[str]) -> ConfigT:
    """Return a config with some settings given and all other settings at their defaults.

    A given setting overrides the value that a given `preset` has for it.

    Args:
        config_class: class of the config.
        overrides: the given settings: a mapping `{"name": value}`, or the strings `"name=value"` of `--set`.

    Raises:
        UsageError: a name is unknown (the message lists the valid names), or a value has the wrong type or range.
    """
    if not isinstance(overrides, Mapping):
        overrides = dict(_split_setting(text) for text in overrides)
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
        values[name] = _convert(name, value, known[name])
    chosen: dict[str, Any] = {**config_class.presets.get(str(values.get("preset")), {}), **values}
    return config_class(**chosen)


def parse_shares(name: str, text: str) -> list[float]:
    """Return the numbers of a setting that lists one number from 0 to 1 for each class, separated by commas.

    Raises:
        UsageError: the text is no such list.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value <= 1 for value in values):
        raise UsageError(
            f"{name}={text} is not allowed",
            where=f"--set {name}={text}",
            why="it has one number from 0 to 1 for each class, background first, for example 0.95,0.7,0.7",
        )
    return values


def _split_setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise UsageError(f"'{text}' is not of the form name=value", where=f"--set {text}")
    return name.strip(), value.strip()


def _convert(name: str, value: Value, setting: dataclasses.Field[Any]) -> Value:
    """Return a value in the type of its setting."""
    kind = setting.metadata["kind"]
    if value is None or (value == "auto" and setting.default is None):
        return None
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
            why=f"the default is {format_value(setting.default)}",
        ) from None


def _as_bool(value: bool | int | float | str) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError


def _as_int(value: int | float | str) -> int:
    """Return a whole number; the text `1e4` is a whole number, too."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    number = value if isinstance(value, int) else float(value)
    if number != int(number):
        raise ValueError
    return int(number)
