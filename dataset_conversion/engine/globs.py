"""Globs choose files, and the text that `*` matches names the case."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnssl.data.raw import IMAGE_ENDINGS
from nnssl.dataset_conversion.engine.layout import stem

# Files that lie beside images and that no user means by `images/*`.
NO_IMAGES = (".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".pdf", ".xlsx", ".db", ".ini", ".log")
# A header file and its file of voxels are one image, which the header file names.
HEADERS = (".mhd", ".nhdr", ".hdr")
VOXEL_FILES = (".raw", ".zraw", ".raw.gz", ".img", ".img.gz")
_WILDCARDS = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}


def match_files(
    folder: Path, glob: str, problems: list[str], without: Collection[Path] = frozenset()
) -> dict[str, Path]:
    """Return case -> file for the image files that a glob matches.

    Args:
        folder: the folder of the glob.
        glob: the glob; `*`, `?` and `[…]` match within a name, `**/` matches folders.
        problems: gets a line for each two files of one case.
        without: files to leave out.
    """
    found: dict[str, Path] = {}
    pattern = re.compile(_as_regex(glob))
    paths = [path for path in sorted(folder.glob(glob)) if path.is_file() and not path.name.startswith(".")]
    for path in paths:
        match = pattern.fullmatch(path.relative_to(folder).as_posix())
        if match and path not in without and not _belongs_to_an_image(path):
            merge_matches(found, {_case_of(match, path): path}, problems)
    return found


def merge_matches(found: dict[str, Path], more: Mapping[str, Path], problems: list[str]) -> None:
    """Add files to those found so far; two files of one case are a problem."""
    for case, path in more.items():
        if found.setdefault(case, path) != path:
            problems.append(
                f"{found[case].name} and {path.name} would both be the case {case}: let the globs match one of them, "
                "or name the channels with -channel and give one glob a channel"
            )


def expected_files(globs: Sequence[str], case: str) -> str:
    """Return the names that the file of a case may have, as the end of a message."""
    return " or ".join(_with_case(glob, case) for glob in globs)


def _with_case(glob: str, case: str) -> str:
    """Return a glob with the case in the place of the `*` that names cases; other globs stay as they are."""
    folder, slash, name = glob.rpartition("/")
    trunk, _, ending = name.partition(".")
    naming = folder + slash + trunk
    if naming.count("*") != 1 or "?" in naming or "[" in naming:
        return glob
    return naming.replace("*", case) + (f".{ending or '*'}" if ending or naming.endswith("*") else "")


def _case_of(match: re.Match[str], path: Path) -> str:
    """Return the words that the wildcards match, without the ending of an image file."""
    end = len(match[0]) - len(path.name) + len(stem(path))
    spans = (match.span(number) for number in range(1, match.re.groups + 1))
    words = [word for start, stop in spans for word in match[0][start : min(stop, end)].split("/") if word]
    return "_".join(words) or stem(path)


def _belongs_to_an_image(path: Path) -> bool:
    """Return whether a file is no image of its own: a table, a text, or the file of voxels beside a header."""
    name = path.name.lower()
    ending = next((ending for ending in VOXEL_FILES if name.endswith(ending)), "")
    if ending:
        trunk = path.name[: len(name) - len(ending)]
        return any(path.with_name(trunk + header).is_file() for header in HEADERS)
    return name.endswith(NO_IMAGES) and not name.endswith(IMAGE_ENDINGS)


def _as_regex(glob: str) -> str:
    parts = re.split(r"(\*\*/|\*|\?|\[!?[^\]]+\])", glob)
    return "".join(_WILDCARDS.get(part) or _as_class(part) or re.escape(part) for part in parts)


def _as_class(part: str) -> str:
    """Return the regular expression of `[…]` or `[!…]`, no text for another part of a glob."""
    if len(part) < 3 or part[0] != "[":
        return ""
    negation = "^" if part[1] == "!" else ""
    return f"([{negation}{re.escape(part[1 + len(negation) : -1]).replace(chr(92) + '-', '-')}])"
