from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnssl.errors import UsageError
from nnssl.training.settings import LONGEST_TAG, RunSettings, automatic_tag, check_tag

VALUES = st.one_of(st.booleans(), st.integers(-5, 5), st.floats(0, 10), st.text(max_size=20), st.none())
SETTINGS = st.builds(
    RunSettings,
    num_iterations=st.integers(1, 300_000),
    seed=st.integers(0, 5),
    bf16=st.booleans(),
    config=st.dictionaries(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), VALUES, max_size=6),
)


@pytest.mark.parametrize(
    ("settings", "tag"),
    [
        ({}, ""),
        ({"labelled": "7"}, ""),
        ({"seed": 1}, "seed1"),
        ({"num_iterations": 2500}, "iterations2500"),
        ({"config": {"rampup_share": 0.5, "ema_decay": 0.9}, "seed": 1}, "seed1,ema_decay=0.9,rampup_share=0.5"),
        ({"config": {"consistency_weight": 10.0}}, "consistency_weight=10"),
        ({"config": {"mix": False}, "bf16": True}, "bf16,mix=off"),
    ],
)
def test_what_differs_from_the_defaults_names_the_run(settings: dict, tag: str) -> None:
    assert automatic_tag(RunSettings(**settings)) == tag


def test_the_tag_of_a_run_that_starts_from_other_weights_says_so() -> None:
    assert automatic_tag(RunSettings(), pretrained=True) == "pretrained"
    assert automatic_tag(RunSettings(start_from="a", pseudo_labels="b")) == "started-ca9781,pseudolabels-3e23e8"
    assert automatic_tag(RunSettings(start_from="c")) != automatic_tag(RunSettings(start_from="a"))
    assert automatic_tag(RunSettings(tag="other")) == ""


def test_long_and_unusual_texts_are_shortened_and_end_in_a_hash() -> None:
    long = automatic_tag(RunSettings(config={f"setting_{i}": i for i in range(12)}))
    assert len(long) <= LONGEST_TAG
    assert long.startswith("setting_0=0,setting_1=1")
    mended = automatic_tag(RunSettings(config={"network": "mamba_unet:width=8"}))
    assert re.fullmatch(r"network=mamba_unet-width=8-[0-9a-f]{8}", mended)


@given(SETTINGS, SETTINGS)
def test_tags_are_folder_names_and_never_shared(one: RunSettings, other: RunSettings) -> None:
    tag = automatic_tag(one)
    assert tag == automatic_tag(RunSettings(**one.to_dict()))
    assert re.fullmatch(r"[A-Za-z0-9._=,+%-]{0,60}", tag)
    assert "__" not in tag
    same = [{**each.to_dict(), "labelled": None, "tag": ""} for each in (one, other)]
    written = [str(each) for each in same]
    if tag == automatic_tag(other):
        assert written[0] == written[1] or _alike(one, other)


def _alike(one: RunSettings, other: RunSettings) -> bool:
    """Return whether two settings are written alike, as the number 1.0 and the text 1.0 are."""
    from nnssl.config import format_value

    words = [{name: format_value(value) for name, value in each.config.items()} for each in (one, other)]
    return words[0] == words[1] and one.seed == other.seed and one.num_iterations == other.num_iterations


@pytest.mark.parametrize("tag", ["", "a/b", "two words", "a__b", "x@y", "ä", "x" * 61])
def test_tags_that_cannot_name_a_folder_are_refused(tag: str) -> None:
    with pytest.raises(UsageError, match="cannot be the tag of a run"):
        check_tag(tag)


def test_given_tags() -> None:
    assert check_tag("final-2_%+.=,A") == "final-2_%+.=,A"
    assert check_tag("default") == ""


def test_epochs_cover_the_run() -> None:
    settings = RunSettings(num_iterations=600)
    assert settings.num_epochs == 3
    assert [settings.epoch_end(i) for i in range(3)] == [250, 500, 600]
    with pytest.raises(UsageError, match="at least 1"):
        RunSettings(num_iterations=0)
    with pytest.raises(UsageError, match="0 or larger"):
        RunSettings(seed=-1)
