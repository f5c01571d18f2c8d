"""Several predictions of one scan: from several runs, from several checkpoints of a run, or from mirrored copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnssl.annotation.agreement import FloatArray, entropy
from nnssl.data.labels import Label
from nnssl.data.raw import channels_of
from nnssl.errors import UsageError
from nnssl.evaluation.postprocessing import postprocess
from nnssl.evaluation.structures import declared_structures
from nnssl.host import READERS_OF_PICTURES
from nnssl.inference.inputs import ScanToPredict
from nnssl.inference.models import ModelFolder, find_folds, find_named
from nnssl.inference.postprocessing import shared_choice
from nnssl.names import (
    CHECKPOINT_BEST,
    CHECKPOINT_FINAL,
    CHECKPOINT_SUPERVISED,
    DATASET_JSON,
    FILE_ENDING_KEY,
    FOLD_PREFIX,
    LABELS_KEY,
    PLANS_JSON,
)
from nnssl.system.files import DATASET_KEYS, PLANS_KEYS, read_object
from nnssl.training.settings import RunSettings

if TYPE_CHECKING:
    import torch

    from nnssl.inference.predictor import Predictor

Kind = Literal["runs", "checkpoints", "mirrored copies"]
CHECKPOINTS = (CHECKPOINT_FINAL, CHECKPOINT_BEST, CHECKPOINT_SUPERVISED)


@dataclass(frozen=True)
class MemberFold:
    """One fold of a model that takes part.

    Attributes:
        model: the model folder.
        fold: name of the fold.
    """

    model: ModelFolder
    fold: str

    @property
    def folder(self) -> Path:
        """The fold's folder."""
        return self.model.path / f"{FOLD_PREFIX}{self.fold}"

    @property
    def labelled(self) -> str | None:
        """The label budget of the run, None for all labels."""
        return RunSettings.from_plans(read_object(self.model.path / PLANS_JSON)).labelled


@dataclass(frozen=True)
class Opinion:
    """What the members say about one scan, on the grid of the scan.

    Attributes:
        masks: label values (z, y, x), one a member.
        probs: mean probabilities (C, z, y, x) of classes or regions.
        consensus: label values (z, y, x) of the mean probabilities.
        uncertainty: entropy (z, y, x) of the mean probabilities, in [0, 1].
        properties: of the scan, as nnU-Net's reader gives them.
    """

    masks: list[NDArray[Any]]
    probs: FloatArray
    consensus: NDArray[Any]
    uncertainty: NDArray[np.float32]
    properties: dict[str, Any]


def find_member_folds(models: Sequence[str | Path]) -> list[MemberFold]:
    """Return the folds that the given models mean; a model folder stands for all of its trained folds.

    Args:
        models: model or fold folders, as paths or as names below `nnUNet_results`.

    Raises:
        UsageError: no such model, several with the name, no such fold, or models with different labels or files.
    """
    folds = []
    for name in models:
        model, own = find_named(name)
        folds += [MemberFold(model, fold) for fold in find_folds(model, own)]
    folds = list({each.folder.resolve(): each for each in folds}.values())
    keys = (LABELS_KEY, "regions_class_order", FILE_ENDING_KEY, "channel_names")
    contents = [read_object(each.model.path / DATASET_JSON, keys=DATASET_KEYS) for each in folds]
    for each, content in zip(folds, contents, strict=True):
        if any(content.get(key) != contents[0].get(key) for key in keys):
            raise UsageError(
                "the models have different labels, channels or files",
                where=each.model.path,
                why=f"the others are of the kind of {folds[0].model.path}",
                run="give runs of one data set",
            )
    return folds


def files_of(model: ModelFolder) -> tuple[str, int]:
    """Return the ending of the files that a model was trained on, and the number of image files of a scan."""
    plans = read_object(model.path / PLANS_JSON, keys=PLANS_KEYS)
    description = read_object(model.path / DATASET_JSON, keys=DATASET_KEYS)
    pictures = plans["image_reader_writer"] in READERS_OF_PICTURES
    return str(description[FILE_ENDING_KEY]), 1 if pictures else len(channels_of(description))


def _different_checkpoints(folder: Path) -> list[str]:
    """Return the checkpoints of a fold whose weights differ from those of the checkpoints before them."""
    import torch

    from nnssl.inference.checkpoint import load_checkpoint

    found: dict[str, dict[str, torch.Tensor]] = {}
    for name in CHECKPOINTS:
        if name == CHECKPOINT_FINAL or (folder / name).is_file():
            weights = load_checkpoint(folder / name).weights
            same = (
                other.keys() == weights.keys() and all(torch.equal(other[key], weights[key]) for key in weights)
                for other in found.values()
            )
            if not any(same):
                found[name] = weights
    return list(found)


class Members:
    """The networks that predict, loaded once. Their masks are post-processed where all have the same stored decision.

    With several folds each is a member. With one, its checkpoints are (final, best, after the supervised stage), as far
    as there are several with different weights; else mirrored copies of the scan are.

    Args:
        folds: that take part.
        mirroring: average each member over mirrored copies; not where mirrored copies are the members.
        device: `cuda`, `cpu` or `mps`; None takes the best one.

    Raises:
        EnvironmentProblem: a checkpoint is damaged, or there is no such device.
    """

    def __init__(self, folds: Sequence[MemberFold], *, mirroring: bool, device: str | torch.device | None) -> None:
        from nnssl.inference.predictor import Predictor

        self.kind: Kind = "runs"
        pairs = [(each, CHECKPOINT_FINAL) for each in folds]
        if len(folds) == 1:
            pairs = [(folds[0], name) for name in _different_checkpoints(folds[0].folder)]
            self.kind = "checkpoints" if len(pairs) > 1 else "mirrored copies"
        self.names = [f"{each.model.path.name}/{FOLD_PREFIX}{each.fold}/{name}" for each, name in pairs]
        options: dict[str, Any] = {"mirroring": mirroring and self.kind != "mirrored copies", "device": device}
        self._predictors = [
            Predictor.from_folder(each.model, folds=[each.fold], checkpoint=name, **options) for each, name in pairs
        ]
        self._postprocessing = shared_choice([each.postprocessing for each in self._predictors]).decision

    @property
    def first(self) -> Predictor:
        """The first member, for what all share: labels, reader, channels."""
        return self._predictors[0]

    @property
    def structures(self) -> dict[Label, str]:
        """Label or region -> name."""
        return declared_structures(self.first.dataset_json, Path(DATASET_JSON)).names

    @property
    def reader(self) -> type[Any]:
        """nnU-Net's reader of scans and masks."""
        reader: type[Any] = self.first.plans_manager.image_reader_writer_class
        return reader

    def opinion(self, scan: ScanToPredict) -> Opinion:
        """Return what the members say about a scan that `check_cases` has passed.

        Raises:
            DataError: the intensities of the scan cannot be normalised.
            OutOfMemory: the device has too little memory for the scan.
        """
        import torch

        from nnssl.labelling.prediction import most_likely

        labels, masks, total = self.first.label_manager, [], None
        properties: dict[str, Any] = {}
        for predict in self._predictions():
            probs, properties = predict(scan)
            mask = most_likely(torch.from_numpy(probs), labels)[0]
            masks.append(postprocess(mask, self._postprocessing))
            total = probs if total is None else total + probs
        assert total is not None
        mean = total / len(masks)
        consensus, _ = most_likely(torch.from_numpy(mean), labels)
        consensus = postprocess(consensus, self._postprocessing)
        return Opinion(masks, mean, consensus, entropy(mean, labels.has_regions), properties)

    def _predictions(self) -> Iterator[Callable[[ScanToPredict], tuple[FloatArray, dict[str, Any]]]]:
        if self.kind != "mirrored copies":
            for predictor in self._predictors:
                yield predictor.probabilities_of
            return
        axes = range(len(self.first.configuration_manager.patch_size))
        for flipped in ((), *((axis,) for axis in axes)):
            yield partial(self.first.probabilities_of, flipped=flipped)
