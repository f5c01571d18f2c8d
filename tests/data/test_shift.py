from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnssl.data.scans import ChannelIntensity, ScanFacts
from nnssl.data.shift import shift_warnings


def make_facts(kind: str, count: int, seed: int, **changes: object) -> dict[str, ScanFacts]:
    """Return facts with the scatter of a homogeneous data set."""
    rng = np.random.default_rng(seed)
    facts = {}
    for number in range(count):
        mean, std = 300 * rng.normal(1, 0.15), 90 * rng.normal(1, 0.1)
        facts[f"{kind}{number}"] = ScanFacts(
            case=f"{kind}{number}",
            kind=kind,
            shape=tuple(int(n) for n in rng.normal([40, 48, 48], 3)),
            spacing_mm=tuple(float(mm) for mm in rng.normal([2, 1.2, 1.2], 0.05)),
            orientation="RAS",
            content_hash="",
            source_hash="",
            intensity=(ChannelIntensity(mean, std, mean - 2 * std, mean + 2 * std),),
        )
        if changes:
            facts[f"{kind}{number}"] = replace(facts[f"{kind}{number}"], **changes)
    return facts


@pytest.mark.parametrize("labelled", [1, 2, 5, 30])
def test_no_warning_on_homogeneous_scans(labelled: int) -> None:
    for seed in range(40):
        parts = [
            make_facts("labelled", labelled, seed),
            make_facts("unlabelled", 60, seed + 100),
            make_facts("test", 9, seed + 200),
        ]
        assert shift_warnings(parts[0] | parts[1] | parts[2]) == []


def test_no_warning_on_identical_spacings() -> None:
    facts = make_facts("labelled", 4, 0, spacing_mm=(1.0, 1.0, 1.0)) | make_facts(
        "unlabelled", 9, 1, spacing_mm=(1.0, 1.0, 1.0)
    )
    assert shift_warnings(facts) == []


def test_no_warning_without_something_to_compare() -> None:
    assert shift_warnings(make_facts("labelled", 4, 0)) == []
    assert shift_warnings({}) == []


@pytest.mark.parametrize("kind", ["unlabelled", "test"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("spacing", {"spacing_mm": (5.0, 1.2, 1.2), "shape": (16, 48, 48)}),
        ("size", {"shape": (40, 120, 48), "spacing_mm": (2.0, 1.2, 1.2)}),
        ("intensity", {"intensity": (ChannelIntensity(900.0, 90.0, 700.0, 1100.0),)}),
        ("intensity", {"intensity": (ChannelIntensity(300.0, 400.0, 0.0, 1100.0),)}),
        ("orientation", {"orientation": "LPI"}),
    ],
)
def test_a_shifted_group_gives_one_line(kind: str, family: str, changes: dict[str, object]) -> None:
    lines = shift_warnings(make_facts("labelled", 5, 0) | make_facts(kind, 20, 1, **changes))
    assert len(lines) == 1
    assert lines[0].startswith(f"{family}: ")
    assert f"{kind} scans" in lines[0]


def test_the_line_names_both_medians_and_the_most_deviating_cases() -> None:
    facts = make_facts("labelled", 5, 0, spacing_mm=(2.0, 1.0, 1.0), shape=(10, 40, 40))
    facts |= make_facts("unlabelled", 5, 1, spacing_mm=(4.0, 1.0, 1.0), shape=(5, 40, 40))
    facts["unlabelled3"] = replace(facts["unlabelled3"], spacing_mm=(5.0, 1.0, 1.0), shape=(4, 40, 40))
    (line,) = shift_warnings(facts)
    assert "4 mm against 2 mm" in line
    assert "most deviating: unlabelled3 (5 mm)" in line


def test_single_scans_that_stand_apart_are_named() -> None:
    facts = make_facts("labelled", 5, 0) | make_facts("unlabelled", 40, 1)
    facts["unlabelled7"] = replace(facts["unlabelled7"], shape=(40, 300, 48))
    (line,) = shift_warnings(facts)
    assert line.startswith("size: unlabelled scans (1 of 40) stand apart")
    assert "unlabelled7 (" in line
    assert line.count("unlabelled") == 2


def test_single_scans_of_another_orientation_are_named() -> None:
    facts = make_facts("labelled", 5, 0) | make_facts("unlabelled", 6, 1)
    facts["unlabelled2"] = replace(facts["unlabelled2"], orientation="")
    (line,) = shift_warnings(facts)
    assert line.startswith("orientation: 1 of 6 unlabelled scans")
    assert "unlabelled2 (none)" in line
