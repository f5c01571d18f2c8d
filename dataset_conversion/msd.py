"""A task of the Medical Segmentation Decathlon: `imagesTr`, `labelsTr`, `imagesTs` and the older dataset.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import find_root, stem
from nnssl.dataset_conversion.engine.records import Found, Source, SourceRecord
from nnssl.dataset_conversion.engine.sources import Frame, ImageFile
from nnssl.names import DATASET_JSON, IMAGES_TR
from nnssl.system.files import read_object

KEYS = ("modality", "labels", "training")


def find_cases(folder: Path, options: dict[str, Any]) -> Found:  # noqa: ARG001 - this converter has no options
    """Return the cases that dataset.json lists; the fourth axis of an image holds the channels."""
    expected = f"{DATASET_JSON} and {IMAGES_TR}"
    root, problems = find_root(folder, expected, lambda place: (place / DATASET_JSON).is_file())
    if root is None:
        return Found((), ("image",), {"background": 0}, problems=tuple(problems), name="MSD")
    about = read_object(root / DATASET_JSON, "download the task again", KEYS)
    try:
        return _found(root, about)
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
        problem = f"dataset.json does not have the form of the Decathlon ({type(error).__name__}: {error})"
        return Found((), ("image",), {"background": 0}, problems=(problem,), name="MSD")


def _found(root: Path, about: dict[str, Any]) -> Found:
    channels = tuple(about["modality"][key] for key in sorted(about["modality"], key=int))
    labels = {name: int(value) for value, name in sorted(about["labels"].items(), key=lambda item: int(item[0]))}
    records = [
        SourceRecord(stem(path), _channels(path, len(channels)), "labelled", ImageFile(_below(root, entry["label"])))
        for entry in about["training"]
        for path in [_below(root, entry["image"])]
    ]
    tested = [_below(root, entry["image"] if isinstance(entry, dict) else entry) for entry in about.get("test", ())]
    records += [SourceRecord(stem(path), _channels(path, len(channels)), "test") for path in tested]
    match = re.fullmatch(r"Task\d+_(\w+)", root.name)
    name = match[1] if match else re.sub(r"\W", "", str(about.get("name", "")))
    background = next(iter(labels))
    labels = {"background" if label == background else label: value for label, value in labels.items()}
    return Found(tuple(records), channels, labels, name=name or "MSD")


def _below(root: Path, listed: str) -> Path:
    return root / listed.removeprefix("./")


def _channels(path: Path, count: int) -> tuple[Source, ...]:
    return tuple(Frame(path, index) for index in range(count)) if count > 1 else (ImageFile(path),)
