from __future__ import annotations

import re

from nnssl.annotation.viewers import COLOURS, colour_of, itk_snap_table, names_of_values, slicer_table
from nnssl.data.labels import parse_labels

NAMES = {0: "background", 1: "left core", 2: 'a "rim"'}


def test_slicers_table_has_one_line_a_value() -> None:
    lines = [line for line in slicer_table(NAMES).splitlines() if not line.startswith("#")]
    assert lines[0] == "0 background 0 0 0 0"
    assert lines[1] == "1 left_core 230 159 0 255"
    assert lines[2] == "2 a__rim_ 86 180 233 255"


def test_itk_snaps_table_has_its_columns() -> None:
    rows = [line for line in itk_snap_table(NAMES).splitlines() if not line.startswith("#")]
    pattern = re.compile(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([01])\s+([01])\s+([01])\s+"([^"]*)"')
    found = [pattern.fullmatch(row) for row in rows]
    assert all(found)
    assert [match.groups() for match in found] == [
        ("0", "0", "0", "0", "0", "0", "0", "Clear Label"),
        ("1", "230", "159", "0", "1", "1", "1", "left core"),
        ("2", "86", "180", "233", "1", "1", "1", "a _rim_"),
    ]


def test_values_of_regions_and_the_ignore_label_have_names() -> None:
    labels = parse_labels(
        {"labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, "regions_class_order": [1, 2]}
    )
    assert names_of_values(labels) == {0: "background", 1: "whole", 2: "core", 3: "ignore"}


def test_colours_differ_also_beyond_the_fixed_ones() -> None:
    colours = [colour_of(index) for index in range(40)]
    assert len(set(colours)) == 40
    assert tuple(colours[: len(COLOURS)]) == COLOURS
    assert all(0 <= part <= 255 for colour in colours for part in colour)
