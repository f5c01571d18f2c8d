"""The files below the download folder that a conversion does not take."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from nnssl.dataset_conversion.engine.layout import relative_name
from nnssl.dataset_conversion.engine.records import Found

VOLUME_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".h5", ".hdf5", ".img", ".hdr")
SHOWN_FOLDERS = 20
SHOWN_FILES = 5


def find_strangers(found: Found, source: Path, data_sets: Path) -> list[Path]:
    """Return the files below the download folder that the conversion does not take.

    For the layout of a public data set these are the image files that do not belong to the layout; a download holds
    many other files. For a user's own folder these are all files.

    Args:
        found: the cases; their files and the ignored files are none of the strangers.
        source: the download folder.
        data_sets: the folder of all data sets; if it lies below the download folder, its files are left aside.
    """
    used = {path for record in found.records for path in record.files()} | set(found.ignored)
    aside = {data_sets} if data_sets.is_relative_to(source) and data_sets != source else set()
    inside = (path for path in sorted(source.rglob("*")) if path.is_file())
    return [
        path
        for path in inside
        if not (found.strict and not path.name.lower().endswith(VOLUME_ENDINGS))
        and not _is_hidden(path, source)
        and not ({path, *path.parents} & (used | aside))
    ]


def describe_left_out(left_out: Collection[Path], used: Iterable[Path], source: Path) -> list[str]:
    """Return one line a folder: the folder and its number of files where no file of it is used, else the file names.

    Args:
        left_out: the files that are not used.
        used: the files that are used.
        source: the download folder.
    """
    with_use = {place for path in used for place in path.parents}
    folders: dict[Path, list[Path]] = {}
    for path in left_out:
        unused = [place for place in path.parents if place.is_relative_to(source) and place not in with_use]
        folders.setdefault(unused[-1] if unused and unused[-1] != source else path.parent, []).append(path)
    lines = []
    for folder, paths in sorted(folders.items()):
        if folder in with_use or folder == source:
            names = ", ".join(relative_name(path, source) for path in paths[:SHOWN_FILES])
            more = f" and {len(paths) - SHOWN_FILES} more" if len(paths) > SHOWN_FILES else ""
            lines.append(f"left out: {names}{more}")
        else:
            lines.append(f"left out: the folder {relative_name(folder, source)} with {len(paths)} file(s)")
    more_folders = len(lines) - SHOWN_FOLDERS
    return [*lines[:SHOWN_FOLDERS], *([f"left out: files in {more_folders} more folders"] if more_folders > 0 else [])]


def _is_hidden(path: Path, source: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(source).parts)
