from __future__ import annotations

from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.case_names import find_name_problems
from nnssl.dataset_conversion.engine.records import Found, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile


def record(case: str, **changes: Any) -> SourceRecord:
    image = ImageFile(Path(f"{case}.nii.gz"))
    return SourceRecord(**{"case": case, "channels": (image,), "part": "labelled", **changes})


def test_problems_of_names() -> None:
    found = Found(
        (record("a"), record("A"), record("ä"), record("t", part="test", patient="p"), record("u", patient="p")),
        ("CT",),
        {},
    )
    problems = find_name_problems(found)
    assert [text.split(":")[0] for text in problems[1:]] == [
        "2 cases have the name a, letter case aside",
        "patient p is in the test part and elsewhere",
    ]
    assert problems[0].startswith("'ä' cannot be a case name")
    two_channels = Found((record("a", part="test"),), ("T1", "T2"), {})
    assert find_name_problems(two_channels) == [
        "a: 1 channel(s), 2 are expected",
        "no labelled case was found; training needs at least one",
    ]


def test_names_that_nnunet_would_mix_up_are_named_across_the_folders() -> None:
    cases = (record("a"), record("a_seg", part="unlabelled"), record("b", part="test"), record("b_seg", part="test"))
    (problem,) = find_name_problems(Found(cases, ("CT",), {}))
    assert problem.startswith("the cases a and a_seg cannot stand in one data set")


def test_one_file_may_hold_all_colours() -> None:
    assert find_name_problems(Found((record("a"),), ("R", "G", "B"), {}, channels_per_file=3)) == []
