from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from nnssl.errors import DataError
from nnssl.evaluation.postprocessing import (
    Postprocessing,
    Step,
    candidates,
    count_components,
    keep_largest,
    postprocess,
)
from nnssl.evaluation.structures import Structures

DECISION = Postprocessing(
    "labelled anatomy",
    3,
    (Step("foreground", (1, 2), True, "why"), Step("core", (1,), False, "why not"), Step("rim", (2,), True)),
)
SHAPES = [(9, 11), (5, 6, 7), (1, 8, 8), (4, 1, 5)]


def naive_components(chosen: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Return the components of a mask by flood fill; voxels that share a corner are connected."""
    left = {tuple(map(int, voxel)) for voxel in np.argwhere(chosen)}
    steps = list(itertools.product((-1, 0, 1), repeat=chosen.ndim))
    found = []
    while left:
        component, open_ends = set(), [left.pop()]
        while open_ends:
            voxel = open_ends.pop()
            component.add(voxel)
            near = {tuple(a + b for a, b in zip(voxel, step, strict=True)) for step in steps} & left
            left -= near
            open_ends += near
        found.append(component)
    return found


def naive_keep_largest(mask: np.ndarray, labels: tuple[int, ...]) -> np.ndarray:
    """Return the mask without the voxels of every component that is smaller than the largest one."""
    components = naive_components(np.isin(mask, labels))
    result = mask.copy()
    for component in components:
        if len(component) < max(map(len, components)):
            for voxel in component:
                result[voxel] = 0
    return result


def random_masks(shape: tuple[int, ...], count: int = 8) -> Iterator[np.ndarray]:
    """Yield masks of the labels 0 to 3 from almost empty to half full."""
    generator = np.random.default_rng(len(shape) + shape[0])
    for share in np.linspace(0.03, 0.5, count):
        yield generator.choice([0, 1, 2, 3], shape, p=[1 - share, *[share / 3] * 3]).astype(np.uint8)


@pytest.mark.parametrize("labels", [(1,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_component_is_that_of_a_flood_fill_and_of_nnunet(shape, labels) -> None:
    removed = 0
    for mask in random_masks(shape):
        before = mask.copy()
        kept = keep_largest(mask, labels)
        np.testing.assert_array_equal(kept, naive_keep_largest(mask, labels))
        np.testing.assert_array_equal(kept, remove_all_but_largest_component_from_segmentation(mask, labels))
        np.testing.assert_array_equal(mask, before)
        assert kept.dtype == mask.dtype
        assert count_components(mask, labels) == len(naive_components(np.isin(mask, labels)))
        removed += np.count_nonzero(kept != mask)
    assert removed


def test_voxels_that_share_a_corner_are_connected() -> None:
    diagonal = np.eye(4, dtype=np.int16)
    assert keep_largest(diagonal, (1,)) is diagonal
    assert count_components(np.stack([np.zeros_like(diagonal), diagonal]), (1,)) == 1


def test_components_of_equal_largest_size_all_stay() -> None:
    row = np.array([[1, 1, 0, 1, 1, 0, 1, 0, 2]])
    assert keep_largest(row, (1,)).tolist() == [[1, 1, 0, 1, 1, 0, 0, 0, 2]]


@pytest.mark.parametrize("mask", [np.zeros((3, 4), int), np.full((2, 3, 4), 2), np.zeros((0, 4), np.uint8)])
def test_a_mask_without_the_label_stays(mask) -> None:
    assert keep_largest(mask, (1,)) is mask
    assert count_components(mask, (1,)) == 0


def test_a_mask_of_other_values_is_an_error() -> None:
    for mask in (np.zeros((3, 3)), np.zeros((3, 3), bool)):
        with pytest.raises(DataError, match="values of type"):
            postprocess(mask, DECISION)


def test_steps_follow_each_other_and_only_those_of_the_decision() -> None:
    row = np.array([[2, 1, 1, 1, 2, 2, 0, 2, 2, 2, 2, 0, 1]])
    # The foreground leaves the first six voxels; of these the rim keeps its two voxels, and the core stays as it is.
    assert postprocess(row, DECISION).tolist() == [[0, 1, 1, 1, 2, 2, 0, 0, 0, 0, 0, 0, 0]]
    assert postprocess(row, None) is row
    assert postprocess(row, Postprocessing("cross-validation", 2, DECISION.steps[1:2])) is row


@pytest.mark.parametrize("shape", SHAPES)
def test_a_decision_is_the_naive_steps_one_after_another(shape) -> None:
    for mask in random_masks(shape):
        expected = naive_keep_largest(naive_keep_largest(mask, (1, 2)), (2,))
        np.testing.assert_array_equal(postprocess(mask, DECISION), expected)


def test_what_is_considered() -> None:
    assert [(step.name, step.labels) for step in candidates(Structures({1: "core", 3: "rim"}))] == [
        ("foreground", (1, 3)), ("core", (1,)), ("rim", (3,)),
    ]  # fmt: skip
    assert [step.labels for step in candidates(Structures({(1, 2): "whole", 2: "core"}))] == [(1, 2), (1, 2), (2,)]
    assert [step.labels for step in candidates(Structures({4: "heart"}))] == [(4,)]


def test_a_decision_goes_round_as_json(tmp_path) -> None:
    assert Postprocessing.read(tmp_path) is None
    DECISION.write(tmp_path)
    assert Postprocessing.read(tmp_path) == DECISION
    content = json.loads((tmp_path / "postprocessing.json").read_text())
    assert (content["evidence"], content["num_cases"]) == ("labelled anatomy", 3)
    assert content["steps"][0] == {"name": "foreground", "labels": [1, 2], "applied": True, "reason": "why"}
    content["colour"] = content["steps"][0]["mood"] = "of a later version"
    assert Postprocessing.from_dict(content) == DECISION


def test_words() -> None:
    assert str(DECISION) == "largest component of foreground, rim (labelled anatomy, 3 cases)"
    assert str(Postprocessing("cross-validation", 1)) == "none (cross-validation, 1 case)"
    assert DECISION.applied == ((1, 2), (2,))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"evidence": "a dream", "num_cases": 1, "steps": []}',
        '{"evidence": "cross-validation", "num_cases": null, "steps": []}',
        '{"evidence": "cross-validation", "num_cases": 1, "steps": [{"name": "core"}]}',
    ],
)  # fmt: skip
def test_a_damaged_decision_is_named(text, tmp_path) -> None:
    (tmp_path / "postprocessing.json").write_text(text)
    with pytest.raises(DataError) as error:
        Postprocessing.read(tmp_path)
    assert error.value.where == str(tmp_path / "postprocessing.json")


def test_a_kill_while_writing_leaves_the_earlier_decision(tmp_path, monkeypatch) -> None:
    DECISION.write(tmp_path)

    def kill(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nnssl.system.files.os.fsync", kill)
    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(DECISION, num_cases=99).write(tmp_path)
    assert Postprocessing.read(tmp_path) == DECISION
    assert [file.name for file in tmp_path.iterdir()] == ["postprocessing.json"]
