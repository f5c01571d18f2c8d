"""Post-processing of masks: of the whole foreground, or of single structures, only the largest component is kept.

Rule and connectivity are nnU-Net's: voxels that share a corner are connected, components of equal largest size all
stay, and what is removed becomes background. nnU-Net's own function takes a time that grows with the square of the
number of components; masks of young networks have thousands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnssl.errors import DataError
from nnssl.evaluation.structures import Structures
from nnssl.names import POSTPROCESSING_JSON
from nnssl.system.files import read_object, write_json

Evidence = Literal["cross-validation", "labelled anatomy"]
IntegerMask = NDArray[np.integer[Any]]
FOREGROUND = "foreground"


@dataclass(frozen=True)
class Step:
    """One thing that post-processing can do: keep only the largest component of a structure.

    Attributes:
        name: of the structure, `foreground` for the union of all.
        labels: the values of the structure.
        applied: whether the decision is to do so.
        reason: why, with numbers.
    """

    name: str
    labels: tuple[int, ...]
    applied: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Postprocessing:
    """A decision about post-processing, as it is stored with a model.

    Attributes:
        evidence: what decided.
        num_cases: labelled cases that the evidence comes from.
        steps: everything that was considered, in the order of application.
    """

    evidence: Evidence
    num_cases: int
    steps: tuple[Step, ...] = ()

    @property
    def applied(self) -> tuple[tuple[int, ...], ...]:
        """The values of the structures that are reduced to their largest component, in order."""
        return tuple(step.labels for step in self.steps if step.applied)

    @property
    def effect(self) -> str:
        """What the decision does to a mask, in words."""
        names = [step.name for step in self.steps if step.applied]
        return f"largest component of {', '.join(names)}" if names else "none"

    def __str__(self) -> str:
        return f"{self.effect} ({self.evidence}, {self.num_cases} case{'s' * (self.num_cases != 1)})"

    def write(self, folder: Path) -> None:
        """Write `postprocessing.json` into a fold's or a model's folder, in one piece."""
        write_json(folder / POSTPROCESSING_JSON, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Postprocessing | None:
        """Return the decision in a fold's or a model's folder, None where there is none.

        Raises:
            DataError: the file holds no decision.
            EnvironmentProblem: the file cannot be read.
        """
        file = folder / POSTPROCESSING_JSON
        return cls.from_dict(read_object(file), file) if file.is_file() else None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: object = "") -> Postprocessing:
        """Return the decision that `dataclasses.asdict` made plain; further keys are ignored.

        Raises:
            DataError: the content is no decision; the message names `where`.
        """
        try:
            if content["evidence"] not in get_args(Evidence):
                raise ValueError(f"evidence {content['evidence']!r}")
            steps = tuple(
                Step(str(step["name"]), tuple(map(int, step["labels"])), bool(step["applied"]), str(step["reason"]))
                for step in content["steps"]
            )
            return cls(content["evidence"], int(content["num_cases"]), steps)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                "the file is no decision about post-processing",
                where=where,
                why=f"{type(error).__name__} {error}",
                run="delete the file, and nnssl_train … --val decides again",
            ) from error


def candidates(structures: Structures) -> list[Step]:
    """Return the steps to consider: the whole foreground, then each structure where there are several."""
    values = {label: label if isinstance(label, tuple) else (label,) for label in structures.names}
    steps = [Step(FOREGROUND, tuple(sorted({value for part in values.values() for value in part})))]
    if len(values) > 1:
        steps += [Step(structures.names[label], part) for label, part in values.items()]
    return steps


def postprocess(mask: IntegerMask, decision: Postprocessing | None) -> IntegerMask:
    """Return a mask after the steps of a decision.

    Args:
        mask: label values (*S), integers; the array stays as it is.
        decision: what to do; None does nothing.

    Returns:
        An array of the same shape and type: `mask` itself where nothing is removed, else a new one.

    Raises:
        DataError: the mask holds no integers.
    """
    for labels in decision.applied if decision else ():
        mask = keep_largest(mask, labels)
    return mask


def keep_largest(mask: IntegerMask, labels: Sequence[int]) -> IntegerMask:
    """Return a mask in which the union of some labels has only its largest component; other labels stay.

    Args:
        mask: label values (*S), integers; the array stays as it is.
        labels: the values whose union is one structure.

    Returns:
        `mask` itself where nothing is removed, as in a mask without these labels; else a new array, in which the
        smaller components are 0. Components of equal largest size all stay.

    Raises:
        DataError: the mask holds no integers.
    """
    box, found, count = _components(mask, labels)
    if count < 2:
        return mask
    sizes = np.bincount(found.ravel())
    small = sizes < sizes[1:].max()
    small[0] = False
    if not small.any():
        return mask
    result = mask.copy()
    result[box][small[found]] = 0
    return result


def count_components(mask: IntegerMask, labels: Sequence[int]) -> int:
    """Return the number of components of the union of some labels.

    Args:
        mask: label values (*S), integers.
        labels: the values whose union is one structure.

    Raises:
        DataError: the mask holds no integers.
    """
    return _components(mask, labels)[2]


def _components(mask: IntegerMask, labels: Sequence[int]) -> tuple[tuple[slice, ...], IntegerMask, int]:
    """Return the box around a structure, the component of each of its voxels (from 1, else 0), and their count."""
    if mask.dtype.kind not in "iu":
        raise DataError(f"the mask holds values of type {mask.dtype}", why="label values are integers")
    chosen = np.isin(mask, labels)
    boxes: Sequence[tuple[slice, ...] | None] = ndimage.find_objects(chosen.view(np.uint8), 1)
    box = boxes[0] or (slice(0, 0),) * mask.ndim
    found, count = ndimage.label(chosen[box], structure=np.ones((3,) * mask.ndim))
    return box, found, count
