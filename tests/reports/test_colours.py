from __future__ import annotations

from nnssl.reports.colours import COLOURS, colour_of, names_of_values


def test_ten_labels_have_ten_colours() -> None:
    assert len({colour_of(value) for value in range(1, 11)}) == 10
    assert colour_of(11) == colour_of(1) == COLOURS[0]


def test_a_value_of_several_regions_has_the_smallest_region_s_name() -> None:
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    assert names_of_values({"labels": regions}) == {1: "whole", 2: "core", 3: "enhancing"}
    assert names_of_values({"labels": {"background": 0, "b": 2, "a": 1}}) == {1: "a", 2: "b"}


def test_unreadable_labels_have_no_names() -> None:
    assert names_of_values({}) == {}
    assert names_of_values({"labels": {"a": "x"}}) == {}
