from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl.data.cache import CachedCases, CaseCache, parse_size
from nnssl.errors import UsageError


class Files:
    """Stands for a data set of nnU-Net with cases of 4 x 4 x 4 voxels, and knows which cases were read."""

    def __init__(self, folder: Path, count: int) -> None:
        self.source_folder, self.identifiers = str(folder), [f"case_{number}" for number in range(count)]
        self.read: list[str] = []

    def load_case(self, case: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        self.read.append(case)
        number = int(case[-1])
        return np.full((1, 4, 4, 4), number, np.float32), np.full((1, 4, 4, 4), -1, np.int8), None, {"number": number}


def test_cases_are_read_once_and_the_same(tmp_path: Path) -> None:
    files = Files(tmp_path, 3)
    cases = CaseCache(10**6).over(files)
    assert files.read == files.identifiers
    for _ in range(2):
        image, labels, previous, properties = cases.load_case("case_2")
        assert image.shape == (1, 4, 4, 4)
        assert image[0, 1:3].tolist() == np.full((2, 4, 4), 2.0).tolist()
        assert (labels[:] == -1).all()
        assert labels.dtype == np.int8
        assert previous is None
        assert properties == {"number": 2}
    assert files.read == files.identifiers


def test_what_is_written_into_a_part_does_not_change_the_case(tmp_path: Path) -> None:
    cases = CaseCache(10**6).over(Files(tmp_path, 1))
    image, _, _, properties = cases.load_case("case_0")
    part = image[:, :2]
    assert type(part) is np.ndarray
    part += 7
    properties["number"] = 5
    again, _, _, properties = cases.load_case("case_0")
    assert not again[:].any()
    assert properties == {"number": 0}


def test_cases_beyond_the_size_are_read_from_their_files(tmp_path: Path) -> None:
    files = Files(tmp_path, 3)
    cache = CaseCache(2 * 5 * 64 + 200)  # two cases of 320 bytes with their properties
    cases = cache.over(files)
    assert isinstance(cases, CachedCases)
    assert list(cases.cases) == ["case_0", "case_1"]
    assert cache.used_bytes <= cache.limit_bytes
    files.read.clear()
    assert cases.load_case("case_2")[0][:].max() == 2
    assert cases.load_case("case_1")[0][:].max() == 1
    assert files.read == ["case_2"]


def test_two_data_sets_of_one_folder_share_the_cases(tmp_path: Path) -> None:
    cache, first, second = CaseCache(10**6), Files(tmp_path, 2), Files(tmp_path, 3)
    cache.over(first)
    cache.over(second)
    assert second.read == ["case_2"]


def test_without_a_size_the_files_are_read(tmp_path: Path) -> None:
    files = Files(tmp_path, 2)
    assert CaseCache(0).over(files) is files
    assert files.read == []


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("2MiB", 2**21)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "-cache") == size


@pytest.mark.parametrize("text", ["4", "GB", "-1GB", "4TB", "much"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is no size") as caught:
        parse_size(text, "-cache")
    assert caught.value.where == f"-cache {text}"
