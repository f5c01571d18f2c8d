"""Says how the grid of a label or channel differs from that of its image, and what a user can do about that."""

from __future__ import annotations

from collections.abc import Iterable

from nnssl.data.geometry import GridRelation


def describe_differences(name: str, relation: GridRelation, may_be_fixed: bool) -> list[str]:
    """Return how the geometry of a file differs from that of the image, one line a quantity; a size stands alone."""
    repair = "correct the header that is wrong"
    if not relation.header_may_be_replaced:
        repair = "correct the header that is wrong, or resample the file to the grid of the image"
    elif may_be_fixed:
        repair = "correct the header, or add --fix_geometry to take the image's"
    lines = []
    for difference in relation.differences:
        if difference.quantity == "shape":
            return [f"{name} has {_by(difference.found)} voxels, its image has {_by(difference.expected)}"]
        separator, unit = (" x ", " mm") if difference.quantity == "spacing" else (", ", "")
        found, expected = (_by(numbers, separator) + unit for numbers in (difference.found, difference.expected))
        lines.append(f"{name} has the {difference.quantity} {found}, its image has {expected}: {repair}")
    return lines


def _by(numbers: Iterable[float], separator: str = " x ") -> str:
    return separator.join(f"{number:.6g}" for number in numbers)
