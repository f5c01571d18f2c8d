"""One colour for each label value, the same in pictures and in the viewer, and the names of label values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnssl.data.labels import parse_labels

# Colours that people with colour blindness tell apart (Okabe and Ito 2008, Tol 2021), bright enough on grey scans.
COLOURS = ("#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#d55e00", "#0072b2", "#bbbbbb", "#ee8866", "#44bb99")


def colour_of(value: int) -> str:
    """Return the colour `#rrggbb` of a label value >= 1."""
    return COLOURS[(value - 1) % len(COLOURS)]


def names_of_values(dataset_json: Mapping[str, Any]) -> dict[int, str]:
    """Return label value -> name; a value that only regions hold gets the name of the smallest of them.

    Empty where dataset.json declares no labels that can be read.
    """
    try:
        declared = parse_labels(dataset_json).values
    except (TypeError, ValueError, KeyError, AttributeError):
        return {}
    names: dict[int, str] = {}
    for name, values in sorted(declared.items(), key=lambda item: len(item[1])):
        for value in values:
            names.setdefault(value, str(name))
    return {value: names[value] for value in sorted(names) if value > 0}
