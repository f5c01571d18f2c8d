"""Helpers of the converters: find the folders of a layout, and report what is missing or misplaced."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nnssl.data.raw import IMAGE_ENDINGS

DEPTH = 3  # levels below -i to search for a misplaced layout


def find_root(folder: Path, expected: str, fits: Callable[[Path], bool]) -> tuple[Path | None, list[str]]:
    """Return the root folder of the layout: `folder`, or None and a problem that proposes another folder.

    Args:
        folder: the folder that `-i` names.
        expected: the layout in words, for the message.
        fits: whether a folder is the root of the layout.
    """
    if fits(folder):
        return folder, []
    below = (child for depth in range(1, DEPTH + 1) for child in sorted(folder.glob("/".join("*" * depth))))
    near = next((place for place in (*folder.parents[:2], *below) if place.is_dir() and fits(place)), None)
    if near:
        return None, [f"-i {folder} does not hold {expected}; {near} does: give that folder to -i"]
    return None, [f"-i {folder} does not hold {expected}"]


def note_absent_parts(root: Path | None, parts: Iterable[str]) -> tuple[str, ...]:
    """Return a note for each part that the download lacks; a user may have left out a part on purpose."""
    missing = [part for part in parts if root and not (root / part).is_dir()]
    return tuple(f"{part} is missing in {root}: its cases are left out" for part in missing)


def list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden folders and those that archives leave behind."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith((".", "__MACOSX")))


def list_files(folder: Path, endings: Iterable[str]) -> list[Path]:
    """Return the files in a folder that have one of the endings, letter case aside, sorted, without hidden files."""
    wanted = tuple(ending.lower() for ending in endings)
    inside = (path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in inside if path.name.lower().endswith(wanted))


def stem(path: Path) -> str:
    """Return the name of a file without its image ending; other dots belong to the name, as in `1.2.840.nii.gz`."""
    ending = next((ending for ending in IMAGE_ENDINGS if path.name.lower().endswith(ending)), "")
    return path.name[: len(path.name) - len(ending)]


def without_channel_number(name: str) -> str:
    """Return a name without nnU-Net's channel number at the end: `CASE` for `CASE_0000`."""
    return re.sub(r"_\d{4}$", "", name)


def relative_name(path: Path, root: Path) -> str:
    """Return a path below the download folder as text, with forward slashes."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def number_labels(names: Sequence[str] | None) -> tuple[dict[str, int], list[str]]:
    """Return the labels of dataset.json for names in the order of the values 1, 2, …, and problems."""
    if not names:
        return {}, []
    labels = {"background": 0} | {name: value for value, name in enumerate(names, start=1)}
    if len(labels) != len(names) + 1:
        return {}, [f"-label_names repeats a name, or names the background: {' '.join(names)}"]
    return labels, []
