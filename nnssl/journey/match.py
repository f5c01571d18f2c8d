"""Which mask belongs to which scan: by the part of their names that both share."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from glob import glob
from pathlib import Path

from nnssl.data.raw import IMAGE_ENDINGS
from nnssl.dataset_conversion.engine.layout import stem, without_channel_number
from nnssl.errors import DataError, UsageError

HEADERS = (".mhd", ".nhdr", ".hdr")  # their voxels stand in a second file, which the header names
TRIED = 30  # scans whose names propose a rule
SHOWN = 10
SEPARATORS = "_-. /"
SCRIPT = "collect.sh"
PARTS = ("images", "labels", "unlabelled", "test", "test_labels")  # the default folders of `nnssl_convert folder`


@dataclass(frozen=True)
class Rule:
    """How the names of scans and masks differ: text before and after what both share.

    Attributes:
        image: text before and after in the name of a scan.
        label: the same in the name of a mask.
    """

    image: tuple[str, str] = ("", "")
    label: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Collected:
    """The files of a study under their new names.

    Attributes:
        files: `images/CASE.nii.gz` and the like -> the user's file.
        notes: what was found and what was left out, one line each.
    """

    files: dict[str, Path]
    notes: list[str]

    def script(self) -> str:
        """Return the shell script that links the files into the folder `scans` beside it."""
        folders = sorted({name.partition("/")[0] for name in self.files})
        lines = [f"ln -sfn {shlex.quote(str(path))} {shlex.quote(name)}" for name, path in self.files.items()]
        made = f"mkdir -p {' '.join(f'scans/{folder}' for folder in folders)}"
        return "\n".join(["#!/bin/sh", 'cd "$(dirname "$0")" || exit 1', made, "cd scans || exit 1", *lines]) + "\n"

    def link(self, folder: Path) -> None:
        """Link the files into a folder, and remove links of an earlier call that are no longer wanted."""
        for old in folder.glob("*/*"):
            if old.is_symlink() and old.relative_to(folder).as_posix() not in self.files:
                old.unlink()
        for name, path in self.files.items():
            target = folder / name
            if target.is_symlink() and target.readlink() == path:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(path)


def find_files(option: str, texts: Sequence[str]) -> list[Path]:
    """Return the image files that paths, globs and folders name, sorted, as absolute paths.

    Raises:
        UsageError: a path or glob names no image file, or a format keeps its voxels in a second file.
    """
    found: dict[Path, None] = {}
    for text in texts:
        place = Path(text).expanduser()
        if place.is_dir():
            paths: Iterable[Path] = place.iterdir()
        else:
            paths = [place] if place.exists() else map(Path, glob(str(place), recursive=True))  # noqa: PTH207
        chosen = sorted(path.absolute() for path in paths if path.is_file() and _is_image(path))
        if not chosen:
            raise UsageError(
                "no image file has this name", where=f"{option} {text}", run="check the path; NIfTI ends with .nii.gz"
            )
        found |= dict.fromkeys(chosen)
    headers = [path for path in found if path.name.lower().endswith(HEADERS)]
    if headers:
        raise UsageError(
            f"{len(headers)} file(s) keep their voxels in a second file",
            where=f"{option} {headers[0]}",
            run="save the scans as .nii.gz or .nrrd, or convert them with nnssl_convert folder",
        )
    return list(found)


def collect(files: Mapping[str, Sequence[Path]]) -> Collected:
    """Return which file becomes which case.

    A scan of `images` without a mask becomes an unlabelled scan, and a mask without a scan is left out: both are named.

    Args:
        files: part -> files; the parts are `images`, `labels`, `unlabelled`, `test` and `test_labels`.

    Raises:
        DataError: masks and scans do not fit together by name, or a file has two parts.
    """
    _check_parts(files)
    pairs = pair_names("labels", files["images"], files["labels"])
    alone = [path for path in files["images"] if path not in pairs]
    made: dict[str, Path] = {}
    notes = [f"{len(pairs)} labelled, {len(files['unlabelled'])} unlabelled, {len(files['test'])} test scans found"]
    taken: set[str] = set()
    for image, (case, label) in pairs.items():
        name = _new_name(case, taken)
        made |= {_target("images", name, image): image, _target("labels", name, label): label}
    notes += _unpaired(alone, files["labels"], {label for _, label in pairs.values()})
    answers = pair_names("test_labels", files["test"], files["test_labels"]) if files["test_labels"] else {}
    notes += _unpaired((), files["test_labels"], {label for _, label in answers.values()})
    for part, paths in (("unlabelled", [*alone, *files["unlabelled"]]), ("test", files["test"])):
        for path in paths:
            case, mask = answers.get(path, (own_name(path, paths), None))
            name = _new_name(case, taken)
            made[_target(part, name, path)] = path
            if mask is not None:
                made[_target("test_labels", name, mask)] = mask
    for name, path in list(made.items()):  # TIFF volumes have their voxel size beside them
        beside = [path.with_name(f"{text}.json") for text in (stem(path), without_channel_number(stem(path)))]
        made |= {f"{name[: -len(_ending(path))]}.json": file for file in beside[::-1] if file.is_file()}
    return Collected(made, notes)


def pair_names(part: str, images: Sequence[Path], labels: Sequence[Path]) -> dict[Path, tuple[str, Path]]:
    """Return scan -> case and mask.

    The rule is the one by which most masks find a scan. Rules come from the names of pairs of files: the longest text
    that both share names the case.

    Raises:
        DataError: fewer than half of the scans find a mask.
    """
    image_names, label_names = _names(images), _names(labels)
    rules: dict[Rule, None] = {Rule(): None}
    for image in list(image_names)[:TRIED]:
        rules |= dict.fromkeys(rule for label in label_names if (rule := _rule(image, label)))
    best: dict[str, tuple[str, str]] = {}
    for rule in rules:
        found = _apply(rule, image_names, label_names)
        if (len(found), sum(map(len, found))) > (len(best), sum(map(len, best))):
            best = found
    if 2 * len(best) < len(images):
        raise DataError(
            f"{len(images) - len(best)} of {len(images)} scans find no mask by name",
            where=f"-{part}",
            why=f"scans: {_shown(image_names)}\nmasks: {_shown(label_names)}",
            run="give the mask the name of its scan, or names that share the case: p1_image.nii.gz and p1_mask.nii.gz",
        )
    return {image_names[image]: (case, label_names[label]) for case, (image, label) in best.items()}


def own_name(path: Path, beside: Sequence[Path]) -> str:
    """Return the name of a scan, with its folders where other scans of the list have the same file name."""
    return next(name for name, other in _names(beside).items() if other == path)


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Return name without ending -> file; where file names repeat, the names begin below the folder of all files.

    Raises:
        DataError: two files differ in their ending alone.
    """
    short = {stem(path): path for path in paths}
    if len(short) == len(paths):
        return short
    common = os.path.commonpath([path.parent for path in paths])
    long = {path.relative_to(common).with_name(stem(path)).as_posix(): path for path in paths}
    if len(long) < len(paths):
        twice = next(path for path in paths if path not in long.values())
        raise DataError(
            "two files have one name but for the ending", where=twice, run="name only one of the two, or rename one"
        )
    return long


def _rule(image: str, label: str) -> Rule | None:
    """Return the rule by which the two names are those of a case, None where they share no word."""
    match = SequenceMatcher(None, image, label, autojunk=False).find_longest_match()
    key = image[match.a : match.a + match.size]
    left, right = len(key) - len(key.lstrip(SEPARATORS)), len(key) - len(key.rstrip(SEPARATORS))
    if left + right >= len(key):
        return None
    first, last = left, match.size - right
    return Rule(
        (image[: match.a + first], image[match.a + last :]), (label[: match.b + first], label[match.b + last :])
    )


def _apply(rule: Rule, images: Collection[str], labels: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return case -> names of scan and mask."""
    masks = {case: name for name in labels if (case := _between(name, rule.label))}
    return {case: (name, masks[case]) for name in images if (case := _between(name, rule.image)) in masks}


def _between(name: str, around: tuple[str, str]) -> str:
    before, after = around
    fits = name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)
    return name[len(before) : len(name) - len(after)] if fits else ""


def _unpaired(images: Sequence[Path], labels: Sequence[Path], used: Collection[Path]) -> list[str]:
    notes = [f"{path.name} has no mask: it becomes an unlabelled scan" for path in images]
    return notes + [f"{path.name} is left out: no scan belongs to this mask" for path in labels if path not in used]


def _check_parts(files: Mapping[str, Sequence[Path]]) -> None:
    """Check that no file has two parts.

    Raises:
        DataError: a file has two parts.
    """
    seen: dict[Path, str] = {}
    for part in PARTS:
        for path in files[part]:
            other = seen.setdefault(path, part)
            if other != part:
                raise DataError(
                    "a file has two parts",
                    where=path,
                    why=f"-{other} and -{part} both name it",
                    run="let each option name other files",
                )


def _new_name(case: str, taken: set[str]) -> str:
    """Return the case as a name that nnU-Net takes, unlike all others so far."""
    plain = re.sub(r"[^A-Za-z0-9_\-.]+", "_", without_channel_number(case)).strip("_-.") or "case"
    name, number = plain, 2
    while name.casefold() in taken:
        name, number = f"{plain}-{number}", number + 1
    taken.add(name.casefold())
    return name


def _target(part: str, case: str, path: Path) -> str:
    return f"{part}/{case}{_ending(path)}"


def _ending(path: Path) -> str:
    return path.name[len(stem(path)) :]


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_ENDINGS) and not path.name.startswith(".")


def _shown(names: Collection[str]) -> str:
    return ", ".join(list(names)[:SHOWN]) + (", …" if len(names) > SHOWN else "")
