from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnssl.host.content import CaseContent, content_of, stored_content


def case() -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 8, 9, 10)).astype(np.float32)
    labels = rng.integers(-1, 3, (1, 8, 9, 10)).astype(np.int16)
    properties = {"spacing": [1.0, 2.0, 3.0], "class_locations": {1: np.array([[0, 1, 2, 3]]), 2: [], (1, 2): []}}
    return image, labels, properties


def stored(folder: Path, blocks: tuple[int, ...]) -> CaseContent | None:
    cut = {"chunks": blocks, "blocks": blocks, "chunks_seg": (1, *blocks[1:]), "blocks_seg": (1, *blocks[1:])}
    nnUNetDatasetBlosc2.save_case(*case(), str(folder / "a"), **cut)
    return stored_content("a", nnUNetDatasetBlosc2(str(folder), ["a"]))


def test_the_layout_on_disk_does_not_count(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    assert stored(folders[0], (1, 8, 8, 8)) == stored(folders[1], (1, 2, 4, 8)) == content_of(*case())
    assert (folders[0] / "a.b2nd").read_bytes() != (folders[1] / "a.b2nd").read_bytes()


def test_number_types_and_the_order_of_keys_do_not_count() -> None:
    image, labels, properties = case()
    turned = dict(reversed(properties.items()))
    assert content_of(image.astype(np.float64), labels.astype(np.int8), turned) == content_of(image, labels, properties)
    assert content_of(image[:, ::-1][:, ::-1], labels, properties) == content_of(image, labels, properties)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("image", lambda image, labels, properties: image.__setitem__((1, 2, 3, 4), 7)),
        ("rest", lambda image, labels, properties: labels.__setitem__((0, 2, 3, 4), 7)),
        ("rest", lambda image, labels, properties: properties.update(spacing=[1.0, 2.0, 3.5])),
        ("rest", lambda image, labels, properties: properties.update(spacing=[1.0, 2.0], more=[3.0])),
        ("rest", lambda image, labels, properties: properties["class_locations"].update({2: np.array([[0, 1, 2, 3]])})),
        ("rest", lambda image, labels, properties: properties["class_locations"].pop((1, 2))),
    ],
)
def test_every_change_counts_in_its_part(part: str, change: Any) -> None:
    image, labels, properties = case()
    before = content_of(image, labels, properties)
    change(image, labels, properties)
    after = content_of(image, labels, properties)
    assert {name for name in CaseContent._fields if getattr(after, name) != getattr(before, name)} == {part}


def test_the_shape_counts() -> None:
    image, labels, properties = case()
    assert content_of(image.reshape(2, 9, 8, 10), labels, properties).image != content_of(*case()).image


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
def test_a_damaged_case_has_no_content(tmp_path: Path, ending: str) -> None:
    stored(tmp_path, (1, 8, 8, 8))
    (tmp_path / f"a{ending}").write_bytes(b"damaged")
    assert stored_content("a", nnUNetDatasetBlosc2(str(tmp_path), ["a"])) is None
