from __future__ import annotations

import dataclasses
import json
import pickle
from dataclasses import dataclass
from typing import ClassVar

import pytest

from nnssl.config import MethodConfig, Value, config_with, describe_allowed, format_value, hyper, redefine
from nnssl.errors import UsageError


@dataclass(frozen=True)
class Settings(MethodConfig):
    decay: float = hyper(0.99, "weight of the old value", "α", low=0, high=1)
    steps: int = hyper(40, "length of the ramp-up", low=1)
    mirrored: bool = hyper(True, "flip the views")
    shape: str = hyper("sigmoid", "form of the ramp-up", choices=("sigmoid", "gaussian"))


def test_defaults_and_metadata() -> None:
    own = {"decay": 0.99, "steps": 40, "mirrored": True, "shape": "sigmoid"}
    assert Settings().to_dict() == {**MethodConfig().to_dict(), **own}
    decay = next(item for item in dataclasses.fields(Settings) if item.name == "decay")
    assert (decay.metadata["symbol"], decay.metadata["help"]) == ("α", "weight of the old value")


def test_round_trips() -> None:
    config = config_with(Settings, ["decay=0.5", "mirrored=no", "shape=gaussian"])
    assert config_with(Settings, json.loads(json.dumps(config.to_dict()))) == config
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("decay=0.5", "decay", 0.5),
        ("decay=1e-3", "decay", 0.001),
        ("decay=1", "decay", 1.0),
        ("decay=0", "decay", 0.0),
        (" decay = 0.5 ", "decay", 0.5),
        ("steps=1e3", "steps", 1000),
        ("steps=7.0", "steps", 7),
        ("steps=+7", "steps", 7),
        ("steps=9007199254740993", "steps", 2**53 + 1),
        ("mirrored=False", "mirrored", False),
        ("mirrored=0", "mirrored", False),
        ("mirrored=off", "mirrored", False),
        ("mirrored=YES", "mirrored", True),
        ("shape=gaussian", "shape", "gaussian"),
    ],
)
def test_values_from_text(text: str, name: str, value: object) -> None:
    found = getattr(config_with(Settings, [text]), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "name", "value"), [({"steps": 5.0}, "steps", 5), ({"decay": 1}, "decay", 1.0), ({"steps": 5}, "steps", 5)]
)
def test_values_from_a_mapping(given: dict[str, float], name: str, value: object) -> None:
    found = getattr(config_with(Settings, given), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("decay=high", "decay=high is not a number"),
        ("decay=true", "decay=true is not a number"),
        ("steps=1.5", "steps=1.5 is not a whole number"),
        ("steps=inf", "steps=inf is not a whole number"),
        ("steps=nan", "steps=nan is not a whole number"),
        ("steps=ten", "steps=ten is not a whole number"),
        ("mirrored=maybe", "mirrored=maybe is not on or off"),
        ("mirrored=2", "mirrored=2 is not on or off"),
        ("decay=1.01", "decay=1.01 is not allowed"),
        ("decay=-0.1", "decay=-0.1 is not allowed"),
        ("decay=nan", "decay=nan is not allowed"),
        ("decay=inf", "decay=inf is not allowed"),
        ("steps=0", "steps=0 is not allowed"),
        ("shape=linear", "shape=linear is not allowed"),
    ],
)
def test_wrong_values(text: str, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment) as caught:
        config_with(Settings, [text])
    assert caught.value.exit_code == 2
    assert caught.value.where == f"--set {text}"


@pytest.mark.parametrize("given", [{"decay": True}, {"steps": False}, {"mirrored": 1}, {"shape": True}])
def test_flags_and_numbers_are_not_mixed_up(given: dict[str, bool | int]) -> None:
    with pytest.raises(UsageError, match=r"is not (a number|a whole number|on or off|text)"):
        config_with(Settings, given)


def test_the_message_tells_the_range() -> None:
    with pytest.raises(UsageError) as caught:
        Settings(decay=2.0)
    assert caught.value.why == "weight of the old value; allowed: 0 to 1"
    with pytest.raises(UsageError) as caught:
        Settings(steps=-1)
    assert caught.value.why.endswith("allowed: at least 1")
    with pytest.raises(UsageError) as caught:
        Settings(shape="linear")
    assert caught.value.why.endswith("allowed: sigmoid, gaussian")


def test_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(UsageError, match="unknown setting 'decoy'") as caught:
        config_with(Settings, ["decoy=0.5"])
    assert "decay, steps, mirrored, shape" in caught.value.why
    assert caught.value.run == "--set decay=0.5"
    with pytest.raises(UsageError) as caught:
        config_with(Settings, ["unlike=1"])
    assert caught.value.run == "nnssl_methods --verbose lists the settings"


def test_settings_are_written_as_they_are_given() -> None:
    assert [format_value(value) for value in (True, False, 0.5, 1, "sigmoid")] == ["on", "off", "0.5", "1", "sigmoid"]
    assert [format_value(value) for value in (None, 1e-4, 10.0, 1e20)] == ["auto", "0.0001", "10", "1e+20"]
    assert [describe_allowed(Settings, item) for item in dataclasses.fields(Settings)[-4:]] == [
        "0 to 1",
        "at least 1",
        "on, off",
        "sigmoid, gaussian",
    ]


@pytest.mark.parametrize("text", ["decay", "decay=", "=0.5", ""])
def test_not_name_equals_value(text: str) -> None:
    with pytest.raises(UsageError, match="not of the form name=value"):
        config_with(Settings, [text])


@dataclass(frozen=True)
class WithPresets(Settings):
    presets: ClassVar[dict[str, dict[str, Value]]] = {"code": {"decay": 0.9, "shape": "gaussian"}}
    temperature: float | None = hyper(None, "temperature of sharpening", low=0.1)


@dataclass(frozen=True)
class Redefined(WithPresets):
    decay: float = redefine(Settings, "decay", 0.5, symbol="β")
    shape: str = redefine(Settings, "shape", "cubic", choices=("cubic", "sigmoid"))


def test_an_inherited_setting_takes_another_default_and_keeps_its_meaning() -> None:
    assert (Redefined().decay, Redefined().shape, Redefined().steps) == (0.5, "cubic", 40)
    items = {item.name: item for item in dataclasses.fields(Redefined)}
    assert items["decay"].metadata["help"] == "weight of the old value"
    assert (items["decay"].metadata["symbol"], describe_allowed(Redefined, items["decay"])) == ("β", "0 to 1")
    assert describe_allowed(Redefined, items["shape"]) == "cubic, sigmoid"
    with pytest.raises(UsageError, match="shape=gaussian is not allowed"):
        config_with(Redefined, ["shape=gaussian"])


def test_auto_is_the_absence_of_a_number() -> None:
    assert config_with(WithPresets, ["temperature=auto"]).temperature is None
    assert config_with(WithPresets, ["temperature=0.3"]).temperature == 0.3
    assert config_with(WithPresets, json.loads('{"temperature": null}')) == WithPresets()
    item = next(item for item in dataclasses.fields(WithPresets) if item.name == "temperature")
    assert describe_allowed(WithPresets, item) == "auto, at least 0.1"
    for text in ("temperature=0", "decay=auto"):
        with pytest.raises(UsageError, match="is not"):
            config_with(WithPresets, [text])
    with pytest.raises(UsageError, match="decay has no automatic value"):
        config_with(WithPresets, {"decay": None})


def test_a_preset_changes_what_is_not_given() -> None:
    config = config_with(WithPresets, ["shape=sigmoid", "preset=code"])
    assert (config.preset, config.decay, config.shape, config.steps) == ("code", 0.9, "sigmoid", 40)
    assert config_with(WithPresets, {"preset": "default"}) == WithPresets()
    with pytest.raises(UsageError, match="preset=other is not allowed"):
        config_with(WithPresets, ["preset=other"])


@pytest.mark.parametrize(
    "given", [{}, {"preset": "code"}, {"preset": "code", "decay": 0.99}, {"preset": "code", "steps": 3}]
)
def test_changes_make_the_same_config(given: dict[str, float]) -> None:
    config = config_with(WithPresets, given)
    assert config.changes() == given
    assert config_with(WithPresets, config.changes()) == config
    assert config_with(WithPresets, config.to_dict()) == config
