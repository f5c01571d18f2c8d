"""`nnssl_find_best`: nnU-Net's search for the best configuration, with methods as one more dimension."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.errors import DataError, UsageError
from nnssl.evaluation.evidence import decide_by_scores
from nnssl.evaluation.mask_pairs import FilePair, bring_to_reference, read_labels
from nnssl.evaluation.metrics import overlap_counts
from nnssl.evaluation.postprocessing import IntegerMask, Postprocessing, postprocess
from nnssl.evaluation.structures import Structures, declared_structures
from nnssl.host import LabelManager, plans_manager
from nnssl.inference.models import ChosenModel, find_ensemble, find_model_folder
from nnssl.names import (
    BEST_JSON,
    DATASET_JSON,
    FILE_ENDING_KEY,
    FOLD_PREFIX,
    GT_FOLDER,
    PLANS_JSON,
    PREPROCESSED_VARIABLE,
    RESULTS_VARIABLE,
    SUMMARY_JSON,
    VALIDATION_FOLDER,
)
from nnssl.system.files import check_writable, environment_folder, read_object, write_json
from nnssl.training.runs import Run, runs
from nnssl.training.settings import RunSettings


@dataclass(frozen=True)
class RatedCandidate:
    """One run, or a pair of runs, with its score on the held-out cases.

    Attributes:
        models: names of the model folders.
        dice: mean Dice over structures and cases after post-processing, in [0, 1].
        dice_raw: likewise before post-processing.
        postprocessing: the decision by these cases.
    """

    models: tuple[str, ...]
    dice: float
    dice_raw: float
    postprocessing: Postprocessing


@dataclass(frozen=True)
class BestResult:
    """What `find_best` found.

    Attributes:
        file: `best.json`, which `nnssl_predict` follows.
        dataset: folder name of the data set.
        folds: folds that all runs share.
        cases: number of held-out cases.
        candidates: the best first.
        notes: what was left out, and why.
    """

    file: Path
    dataset: str
    folds: tuple[str, ...]
    cases: int
    candidates: tuple[RatedCandidate, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> RatedCandidate:
        """The candidate with the best Dice; of equal ones a single run, then the first name."""
        return self.candidates[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the content of `best.json` among them."""
        return {
            "dataset": self.dataset,
            "models": list(self.best.models),
            "folds": list(self.folds),
            "postprocessing": dataclasses.asdict(self.best.postprocessing),
            "dice": self.best.dice,
            "cases": self.cases,
            "candidates": [
                {"models": list(each.models), "dice": each.dice, "dice_raw": each.dice_raw,
                 "postprocessing": str(each.postprocessing)}
                for each in self.candidates
            ],
            "notes": list(self.notes),
        }  # fmt: skip


@dataclass(frozen=True)
class _HeldOut:
    """The files of one case: the reference, and of each run the mask and the probabilities."""

    name: str
    reference: Path
    masks: tuple[Path, ...]

    def probabilities(self, ending: str) -> list[Path]:
        return [mask.with_name(f"{mask.name.removesuffix(ending)}.npz") for mask in self.masks]


def find_best(dataset: str | int, *, plans: str | None = None, configuration: str | None = None) -> BestResult:
    """Rate the finished runs of a data set and pairs of them on held-out labelled cases, and write `best.json`.

    The cases are those of the validation folds that all runs share; no other case is opened. Each candidate, a run or
    the mean of the probabilities of two runs, gets its own post-processing by nnU-Net's rule, and the best mean Dice
    after it wins. Pairs need the probabilities that `nnssl_train --npz` writes.

    Args:
        dataset: folder name or id.
        plans: plans name with the tag of the label budget; needed where runs have several budgets.
        configuration: only this one.

    Raises:
        UsageError: there is no finished run, or the runs are not comparable: other label budgets, labels or readers, or
            no fold in common.
        DataError: runs were validated on other cases, or a reference or mask is missing or damaged.
        EnvironmentProblem: one of nnU-Net's folders is not set, or the file cannot be written.
    """
    found = _finished(dataset, plans, configuration)
    models, folds = _comparable(found)
    folder = models[0].folder.path
    file = folder.parent / BEST_JSON
    check_writable(file.parent, "the results folder", "make the folder writable")
    description = read_object(folder / DATASET_JSON)
    ending = str(description[FILE_ENDING_KEY])
    references = environment_folder(PREPROCESSED_VARIABLE, must_exist=True) / folder.parent.name / GT_FOLDER
    cases = _held_out(models, folds, references, ending)
    manager = plans_manager(read_object(folder / PLANS_JSON))
    rate = partial(
        _rate, structures=declared_structures(description, folder / DATASET_JSON), ending=ending,
        reader=manager.image_reader_writer_class, labels=manager.get_label_manager(description),
    )  # fmt: skip
    notes = []
    saved = [
        index for index in range(len(models)) if all(case.probabilities(ending)[index].is_file() for case in cases)
    ]
    for index in sorted(set(range(len(models))) - set(saved)):
        if len(models) > 1:
            path = models[index].folder.path.name
            notes.append(f"{path} has no saved probabilities: single only; nnssl_train … --val --npz writes them")
    chosen = [(index,) for index in range(len(models))] + list(itertools.combinations(saved, 2))
    rated = [rate(tuple(models[index].folder.path.name for index in each), each, cases) for each in chosen]
    rated.sort(key=lambda each: -each.dice)
    result = BestResult(file, folder.parent.name, folds, len(cases), tuple(rated), tuple(notes))
    write_json(file, result.to_dict())
    return result


def _finished(dataset: str | int, plans: str | None, configuration: str | None) -> dict[Path, list[Run]]:
    """Return model folder -> finished and validated runs with a fold number."""
    found: dict[Path, list[Run]] = {}
    for run in runs(dataset, plans=plans, configuration=configuration):
        validated = (run.folder / VALIDATION_FOLDER / SUMMARY_JSON).is_file()
        if run.state == "done" and validated and run.fold.isdigit():
            found.setdefault(run.folder.parent, []).append(run)
    if not found:
        raise UsageError(
            "there is no finished and validated run",
            where=environment_folder(RESULTS_VARIABLE),
            run=f"nnssl_runs -d {dataset} lists all runs",
        )
    return found


def _comparable(found: Mapping[Path, Sequence[Run]]) -> tuple[list[ChosenModel], tuple[str, ...]]:
    """Return the models with the folds that all share, once they are known to be comparable."""
    budgets: dict[tuple[str, str, str], Path] = {}
    for model in found:
        settings = RunSettings.from_plans(read_object(model / PLANS_JSON))
        budgets.setdefault((model.parent.name, settings.labelled or "all labels", settings.setting or ""), model)
    if len(budgets) > 1:
        raise UsageError(
            "the runs have other label budgets or settings: they are not comparable",
            why="\n".join(f"{model.name}: {' '.join(filter(None, key))}" for key, model in budgets.items()),
            run="choose one with -p PLANS",
        )
    folds = set.intersection(*({run.fold for run in group} for group in found.values()))
    if not folds:
        raise UsageError(
            "the runs have no validated fold in common: they are not comparable",
            why="\n".join(
                f"{model.name}: folds {' '.join(run.fold for run in group)}" for model, group in found.items()
            ),
            run="train the missing folds, or choose runs with -p and -c",
        )
    shared = tuple(sorted(folds, key=int))
    if len(found) == 1:
        return [ChosenModel(find_model_folder(next(iter(found))), list(shared))], shared
    return find_ensemble(list(found), shared), shared


def _held_out(models: Sequence[ChosenModel], folds: Sequence[str], references: Path, ending: str) -> list[_HeldOut]:
    """Return the validation cases of the folds, which are the same for all models."""
    cases: dict[str, _HeldOut] = {}
    for fold in folds:
        folders = [model.folder.path / f"{FOLD_PREFIX}{fold}" / VALIDATION_FOLDER for model in models]
        names = [{file.name for file in folder.glob(f"*{ending}")} for folder in folders]
        for folder, other in zip(folders, names, strict=True):
            if other != names[0] or not other:
                raise DataError(
                    "the runs were validated on other cases: they are not comparable",
                    where=f"{folders[0]}\n{folder}",
                    why=f"{', '.join(sorted(other ^ names[0])[:5]) or 'no mask'}",
                    run="nnssl_train … --val writes the masks again",
                )
        for name in sorted(names[0]):
            if not (references / name).is_file():
                raise DataError("a validation case has no reference", where=references / name)
            cases[name] = _HeldOut(name, references / name, tuple(folder / name for folder in folders))
    return list(cases.values())


def _rate(
    names: tuple[str, ...],
    members: tuple[int, ...],
    cases: Sequence[_HeldOut],
    **how: Any,  # noqa: ANN401 - of `_load`
) -> RatedCandidate:
    """Return the score of one candidate on all cases, with its own post-processing."""
    structures: Structures = how["structures"]
    load = partial(_load, members=members, ending=how["ending"], reader=how["reader"], labels=how["labels"])
    decision = decide_by_scores({case.name: case for case in cases}, load, structures)
    raw, cleaned = [], []
    for case in cases:
        prediction, reference = load(case)
        raw.append(_dice(prediction, reference, structures))
        cleaned.append(_dice(postprocess(prediction, decision), reference, structures))
    return RatedCandidate(names, _mean(cleaned), _mean(raw), decision)


def _load(
    case: _HeldOut, members: tuple[int, ...], ending: str, reader: type[Any], labels: LabelManager
) -> tuple[IntegerMask, IntegerMask]:
    """Return prediction and reference of a case, (z, y, x); several members are averaged."""
    reference, image = read_labels(reader, case.reference), read_labels(reader, case.masks[members[0]])
    if len(members) > 1:
        import torch

        files = case.probabilities(ending)
        mean = np.mean([np.load(files[index])["probabilities"].astype(np.float32) for index in members], axis=0)
        found = labels.convert_probabilities_to_segmentation(torch.from_numpy(mean))
        image = dataclasses.replace(image, values=found.cpu().numpy().astype(image.values.dtype))
    pair = FilePair(case.name, case.reference, case.masks[members[0]])
    return bring_to_reference(image, reference, pair, same_placement=False)[0].values, reference.values


def _dice(prediction: IntegerMask, reference: IntegerMask, structures: Structures) -> list[float]:
    counts = overlap_counts(prediction, reference, structures.names, ignore_label=structures.ignore_label)
    return [counts[label]["Dice"] for label in structures.names]


def _mean(rows: Sequence[Sequence[float]]) -> float:
    """Return the mean over structures of the mean over cases; a structure without a value has no say, 0 without any."""
    columns = [[value for value in column if not math.isnan(value)] for column in zip(*rows, strict=True)]
    means = [math.fsum(column) / len(column) for column in columns if column]
    return math.fsum(means) / len(means) if means else 0.0
