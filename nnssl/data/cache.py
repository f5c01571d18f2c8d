"""Decoded cases in memory, for data sets that are small enough.

Training opens and decompresses a part of the files of a case for every patch. A cache holds the decoded voxels instead.
Worker processes that are forked share the memory of the cache with the trainer.
"""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.errors import UsageError
from nnssl.host import CaseDataset

UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str, option: str) -> int:
    """Return the bytes of a size like `4GB`, `500MB` or `1.5GiB`.

    Raises:
        UsageError: the text is no such size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG]i?B)", text.strip(), re.IGNORECASE)
    if not found:
        raise UsageError(f"{text} is no size", where=f"{option} {text}", run=f"{option} 4GB, or {option} 500MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


class _Decoded(np.ndarray[Any, Any]):
    """Voxels of which every part that is read is a copy, as with a file: augmentation may write into the part."""

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401 - as numpy
        return np.array(super().__getitem__(place), copy=True, subok=False)


@dataclass(frozen=True)
class _Case:
    image: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    properties: bytes

    @property
    def size_bytes(self) -> int:
        return self.image.nbytes + self.labels.nbytes + len(self.properties)


class CachedCases:
    """A data set of nnU-Net whose cases come from a cache where the cache holds them.

    Args:
        dataset: the data set that reads the files.
        cases: the decoded cases by name.
    """

    def __init__(self, dataset: CaseDataset, cases: dict[str, _Case]) -> None:
        self.dataset, self.cases = dataset, cases
        self.identifiers, self.source_folder = dataset.identifiers, dataset.source_folder

    def load_case(self, case: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Return image (C, *S), labels (1, *S), None, and the properties of a case."""
        held = self.cases.get(case)
        if held is None:
            loaded: tuple[Any, Any, Any, dict[str, Any]] = self.dataset.load_case(case)
            return loaded
        return held.image.view(_Decoded), held.labels.view(_Decoded), None, pickle.loads(held.properties)


class CaseCache:
    """Decoded cases of several folders, up to a size; further cases are read from their files.

    Args:
        limit_bytes: the most memory of all cases together; 0 holds none.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        self._folders: dict[Path, dict[str, _Case]] = {}

    def over(self, dataset: CaseDataset) -> CaseDataset:
        """Return a data set that reads from the cache; cases that are not in the cache are decoded now if they fit."""
        if not self.limit_bytes:
            return dataset
        held = self._folders.setdefault(Path(dataset.source_folder), {})
        for name in dataset.identifiers:
            if name in held:
                continue
            image, labels, _, properties = dataset.load_case(name)
            size = sum(math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in (image, labels))
            if self.used_bytes + size > self.limit_bytes:
                break
            held[name] = _Case(np.asarray(image[:]), np.asarray(labels[:]), pickle.dumps(properties))
            self.used_bytes += held[name].size_bytes
        return CachedCases(dataset, held)
