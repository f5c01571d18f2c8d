"""Method settings: frozen dataclasses whose fields are words and carry the paper's symbol."""

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


def hyper(
    default: Value,
    help_text: str,
    symbol: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:  # noqa: ANN401 - stands as the default of a field of any type, like dataclasses.field
    """Return a dataclass field with a default, the paper's symbol, a one-line meaning and its range (ends included).

    The default None means `auto`: something else decides the number.
    """
    kind = float if default is None else type(default)
    meta = {"help": help_text, "symbol": symbol, "kind": kind, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=meta)


def changed(
    config_class: type[MethodConfig], name: str, default: Value, *, symbol: str = "", choices: tuple[str, ...] = ()
) -> Any:  # noqa: ANN401 - as `hyper`
    """Return an inherited setting with another default; meaning and range stay those of `config_class`.

    Args:
        config_class: a base class of the config that redefines the setting.
        name: the setting.
        default: the new default.
        symbol: the paper's symbol, where it differs.
        choices: the allowed values, where they differ.
    """
    meta = next(item.metadata for item in fields(config_class) if item.name == name)
    news = {"symbol": symbol, "choices": choices}
    return field(default=default, metadata={**meta, **{key: value for key, value in news.items() if value}})


@dataclass(frozen=True)
class MethodConfig:
    """Settings of every method: preset, network, optimiser and augmentation. The defaults are nnU-Net's.

    A method with further presets lists in `presets` which settings each of them changes.

    Raises:
        UsageError: a value is outside its range or not among its choices.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {}

    preset: str = hyper(DEFAULT_PRESET, "named group of settings; a setting that is given itself wins")
    network: str = hyper(
        "plan",
        "network: plan (nnU-Net's), residual (nnU-Net's with residual encoder), bcp (unet_bcp in 2-D, vnet in 3-D), "
        "another of nnssl.registry.NETWORKS, or the path of a class; options: mamba_unet:width=24,state_size=4",
    )
    optimizer: str = hyper(
        "auto", "optimiser; auto: the network's own, sgd for convolutional networks", choices=("auto", "sgd", "adamw")
    )
    learning_rate: float | None = hyper(
        None, "first learning rate; auto: the network's own, else 0.01 for sgd and 5e-4 for adamw", low=0.0
    )
    learning_rate_schedule: str = hyper(
        "poly", "(1 - t/T)^0.9, no change, steps, or half a cosine to 0", choices=("poly", "constant", "step", "cosine")
    )
    learning_rate_factor: float = hyper(0.1, "factor of one step of the schedule `step`", low=0.0, high=1.0)
    learning_rate_interval: float = hyper(0.4, "share of the run between two of those steps", low=1e-6, high=1.0)
    momentum: float = hyper(0.99, "momentum of sgd; the first moment's decay of adamw is 0.9", low=0.0, high=0.9999)
    nesterov: bool = hyper(True, "Nesterov's form of the momentum")
    weight_decay: float | None = hyper(
        None, "weight decay; auto: the network's own, else 3e-5 for sgd and 0.05 for adamw", low=0.0
    )
    augmentation: str = hyper(
        "nnunet", "nnU-Net's, or the papers': crops, flips, 90° turns, ±20°", choices=("nnunet", "paper")
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
                    why=f"{meta['help']}; allowed: {allowed(type(self), item)}",
                )

    def to_dict(self) -> dict[str, Value]:
        """Return the settings as plain values, for the plans and the checkpoint."""
        return dataclasses.asdict(self)

    def changes(self) -> dict[str, Value]:
        """Return the settings from which `config_with` makes this config: the preset, and what differs from it."""
        values = self.to_dict()
        base = config_with(type(self), {"preset": self.preset}).to_dict() | {"preset": DEFAULT_PRESET}
        return {name: value for name, value in values.items() if value != base[name]}


_KINDS = {bool: "on or off", int: "a whole number", float: "a number", str: "text"}


def written(value: object) -> str:
    """Return a setting's value as `--set` takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return "auto" if value is None else str(value)


def choices_of(config_class: type[MethodConfig], setting: dataclasses.Field[Any]) -> tuple[str, ...]:
    """Return the words that a setting can take; empty where it takes a number or any text."""
    if setting.name == "preset":
        return (DEFAULT_PRESET, *config_class.presets)
    choices: tuple[str, ...] = setting.metadata["choices"]
    return choices


def allowed(config_class: type[MethodConfig], setting: dataclasses.Field[Any]) -> str:
    """Return the values that a setting of a config takes, in words."""
    if isinstance(setting.default, bool):
        return "on, off"
    if choices := choices_of(config_class, setting):
        return ", ".join(choices)
    low, high = (None if (end := setting.metadata[name]) is None else f"{end:g}" for name in ("low", "high"))
    if low and high:
        text = f"{low} to {high}"
    elif low:
        text = f"at least {low}"
    else:
        text = f"at most {high}" if high else "any"
    return f"auto, {text}" if setting.default is None else text


def config_with(config_class: type[ConfigT], overrides: Mapping[str, Value] | Iterable[str]) -> ConfigT:
    """Return `config_class` with its defaults, changed by `{"name": value}` or by `--set` strings `"name=value"`.

    A setting that is given wins over what a given `preset` changes.

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
        values[name] = _converted(name, value, known[name])
    chosen: dict[str, Any] = {**config_class.presets.get(str(values.get("preset")), {}), **values}
    return config_class(**chosen)


def _split(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise UsageError(f"'{text}' is not of the form name=value", where=f"--set {text}")
    return name.strip(), value.strip()


def _converted(name: str, value: Value, setting: dataclasses.Field[Any]) -> Value:
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
            why=f"the default is {written(setting.default)}",
        ) from None


def _as_bool(value: bool | int | float | str) -> bool:
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
