"""Names and colours of the labels for 3D Slicer (`.ctbl`) and ITK-SNAP (`.txt`)."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping

from nnssl.data.labels import DeclaredLabels

Colour = tuple[int, int, int]
# Okabe and Ito's colours, which also people with colour blindness tell apart.
COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
SLICER, ITK_SNAP = "labels_slicer.ctbl", "labels_itksnap.txt"


def names_of_values(labels: DeclaredLabels) -> dict[int, str]:
    """Return label value -> name; a value that only regions have is named by its regions."""
    found = {}
    for value in labels.allowed_in_references:
        if value == labels.ignore:
            found[value] = "ignore"
            continue
        own = [name for name, values in labels.values.items() if values == (value,)]
        found[value] = (
            own[0] if own else " and ".join(name for name, values in labels.values.items() if value in values)
        )
    return {0: "background"} | {value: name for value, name in found.items() if value}


def colour_of(index: int) -> Colour:
    """Return the colour of the foreground label with this index, from 0."""
    if index < len(COLOURS):
        return COLOURS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.6, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def slicer_table(names: Mapping[int, str]) -> str:
    """Return the content of a colour table of 3D Slicer: value, name without blanks, red, green, blue, alpha."""
    lines = ["# 3D Slicer color table", f"# {len(names)} values"]
    for index, (value, name) in enumerate(names.items()):
        colour = (0, 0, 0, 0) if value == 0 else (*colour_of(index - 1), 255)
        plain = re.sub(r"[^\w.+-]", "_", name)
        lines.append(f"{value} {plain} {' '.join(map(str, colour))}")
    return "\n".join(lines) + "\n"


def itk_snap_table(names: Mapping[int, str]) -> str:
    """Return the content of a label description file of ITK-SNAP: value, red, green, blue, alpha, visibility, name."""
    lines = ["# ITK-SNAP label description: IDX -R- -G- -B- -A-- VIS MSH LABEL"]
    for index, (value, name) in enumerate(names.items()):
        red, green, blue = (0, 0, 0) if value == 0 else colour_of(index - 1)
        shown = int(value != 0)
        text = re.sub(r'["\x00-\x1f]', "_", "Clear Label" if value == 0 else name)
        lines.append(f'{value:5} {red:5} {green:4} {blue:4} {shown:8} {shown:2} {shown:2}    "{text}"')
    return "\n".join(lines) + "\n"
