"""Helpers of the mappings: find the folders of a layout, and say what is missing or misplaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

DEPTH = 3  # how far below -i a misplaced layout is looked for


def root_of(folder: Path, expected: str, fits: Callable[[Path], bool]) -> tuple[Path | None, list[str]]:
    """Return the folder that the layout begins in: `folder`, or none and a problem that says where it may be.

    Args:
        folder: what `-i` names.
        expected: the layout in words, for the message.
        fits: whether a folder is the beginning of the layout.
    """
    if fits(folder):
        return folder, []
    below = (child for depth in range(1, DEPTH + 1) for child in sorted(folder.glob("/".join("*" * depth))))
    near = next((place for place in (*folder.parents[:2], *below) if place.is_dir() and fits(place)), None)
    if near:
        return None, [f"-i {folder} does not hold {expected}; {near} does: give that folder to -i"]
    return None, [f"-i {folder} does not hold {expected}"]


def absent(root: Path | None, parts: Iterable[str]) -> tuple[str, ...]:
    """Return a note for each part of a layout that is not there; a download may lack it on purpose."""
    missing = [part for part in parts if root and not (root / part).is_dir()]
    return tuple(f"{part} is missing in {root}: its cases are left out" for part in missing)


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones and those that archives leave behind."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith((".", "__MACOSX")))


def files_in(folder: Path, endings: Iterable[str]) -> list[Path]:
    """Return the files in a folder whose names end so (letter case aside), sorted, without hidden ones."""
    wanted = tuple(ending.lower() for ending in endings)
    inside = (path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in inside if path.name.lower().endswith(wanted))


def stem(path: Path, endings: Iterable[str] = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".h5", ".hdf5")) -> str:
    """Return the name of a file without its image ending."""
    for ending in endings:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def named_labels(names: Sequence[str] | None) -> tuple[dict[str, int], list[str]]:
    """Return dataset.json's labels for names given in the order of the values 1, 2, …; empty where none are given."""
    if not names:
        return {}, []
    labels = {"background": 0} | {name: value for value, name in enumerate(names, start=1)}
    if len(labels) != len(names) + 1:
        return {}, [f"-label_names repeats a name, or names the background: {' '.join(names)}"]
    return labels, []
