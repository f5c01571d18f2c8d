"""What stands in a bundle, and under which names.

manifest.json                     name of the model, folds, and size and SHA-256 of every other entry
plans.json, dataset.json          as prediction needs them
postprocessing.json               the model's decision, where it has one
fold_0/weights.safetensors        the deployed network
fold_0/network.json               configuration, mirroring, and weights that stand under two names
fold_0/run.json                   the record of the run, where there is one
fold_0/postprocessing.json        the fold's decision, where it has one
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.bundles.archive import refused
from nnssl.names import (
    DATASET_JSON,
    FOLD_PREFIX,
    NAME_SEPARATOR,
    PLANS_JSON,
    POSTPROCESSING_JSON,
    RUN_JSON,
    TAG_SEPARATOR,
)
from nnssl.training.run_folder import ModelName
from nnssl.training.settings import FORBIDDEN

FORMAT, VERSION = "nnssl-bundle", 1
MANIFEST_JSON = "manifest.json"
WEIGHTS, NETWORK_JSON = "weights.safetensors", "network.json"
MODEL_ENTRIES = (PLANS_JSON, DATASET_JSON, POSTPROCESSING_JSON)
FOLD_ENTRIES = (WEIGHTS, NETWORK_JSON, RUN_JSON, POSTPROCESSING_JSON)
DATASET = re.compile(r"Dataset\d{3,5}_[A-Za-z0-9][A-Za-z0-9._+-]*")
FOLD = re.compile(r"\d{1,3}|all")
LONGEST_NAME = 200


@dataclass(frozen=True)
class Entry:
    """Size and SHA-256 of one file in a bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        dataset: folder name of the data set.
        trainer: class name of the method.
        plans: plans name.
        configuration: `2d`, `3d_fullres`, …
        tag: of the run; empty for the default run.
        folds: in order.
        files: entry -> size and hash.
        nnssl: version that wrote the bundle.
        removed: what the bundle leaves out for privacy.
    """

    dataset: str
    trainer: str
    plans: str
    configuration: str
    tag: str
    folds: tuple[str, ...]
    files: dict[str, Entry] = field(default_factory=dict)
    nnssl: str = ""
    removed: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """Name of the model folder."""
        return ModelName(self.trainer, self.plans, self.configuration, self.tag).folder

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], file: Path) -> Manifest:
        """Return the manifest of the bundle `file`.

        Raises:
            DataError: it is no manifest, is one of a later version, or names what cannot be a model.
        """
        if content.get("format") != FORMAT or content.get("version") != VERSION:
            found = f"{content.get('format')!r} {content.get('version')!r}"
            raise refused(f"its manifest says {found}; this version reads {FORMAT!r} {VERSION}", file, "update nnssl")
        try:
            files = {
                str(name): Entry(int(each["bytes"]), str(each["sha256"])) for name, each in content["files"].items()
            }
            dataset = _text(content["dataset"])
            name = ModelName(*(_text(content[key]) for key in ("trainer", "plans", "configuration", "tag")))
            folds = tuple(_text(fold) for fold in content["folds"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise refused(f"its manifest is incomplete ({type(error).__name__} {error})", file) from error
        manifest = cls(dataset, *name, folds=folds, files=files)
        check_names(manifest.dataset, manifest.model, folds, file)
        unknown = sorted(files.keys() - entries_of(folds))
        if unknown:
            raise refused(f"its manifest lists {unknown[0]!r}, which no bundle has", file)
        return manifest


def entries_of(folds: tuple[str, ...]) -> set[str]:
    """Return the names of all entries that a bundle of these folds may have, without the manifest."""
    return {*MODEL_ENTRIES, *(f"{FOLD_PREFIX}{fold}/{name}" for fold in folds for name in FOLD_ENTRIES)}


def check_names(dataset: str, model: str, folds: tuple[str, ...], file: Path) -> None:
    """Check that a data set, a model and folds have names that nnU-Net's folders can have.

    Raises:
        DataError: one of them has not; the message names `file`.
    """
    pieces = re.split(f"{NAME_SEPARATOR}|{TAG_SEPARATOR}", model)  # the plans name, too, may end in a tag
    safe = ModelName.parse(model) is not None and not any(not piece or FORBIDDEN.search(piece) for piece in pieces)
    if not safe or model.startswith(".") or max(len(model), len(dataset)) > LONGEST_NAME:
        raise refused(f"{model!r} is no name of a model", file)
    if not DATASET.fullmatch(dataset):
        raise refused(f"{dataset!r} is no name of a data set", file)
    if not folds or len(set(folds)) < len(folds) or not all(FOLD.fullmatch(fold) for fold in folds):
        raise refused(f"its folds are {list(folds)}", file)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
