from __future__ import annotations

import itertools
import math

import pytest
import torch

from nnssl.ingredients.thresholds import DifficultyWeights, DynamicThresholdMap

ROW = torch.tensor([0.9, 0.6, 0.2, 0.45])
ROW_PROBS = torch.stack([1 - ROW, ROW])[None]  # (1, 2, 4), of class 1
PLACES = {2: ((3, 3, 7, 6), (5, 4)), 3: ((2, 3, 6, 4, 5), (4, 3, 5))}  # shape of the probabilities, of the grid


def probabilities(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).softmax(1)


def some_boxes(count: int, dim: int, seed: int = 1) -> torch.Tensor:
    """Return boxes of which some are mirrored and some reach outside."""
    return 1.6 * torch.rand(count, dim, 2, generator=torch.Generator().manual_seed(seed)) - 0.3


def voxels_of(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, size)))


def place(box: torch.Tensor, index: tuple[int, ...], size: tuple[int, ...]) -> list[float]:
    return [lo + (i + 0.5) / n * (hi - lo) for (lo, hi), i, n in zip(box.tolist(), index, size, strict=True)]


class Naive:
    """The map of the paper's section, one voxel at a time."""

    def __init__(self, num_classes: int, grid: tuple[int, ...], momentum: float) -> None:
        self.grid, self.momentum = grid, momentum
        self.map = dict.fromkeys(voxels_of(grid), 1 / num_classes)
        self.scale = [1.0] * num_classes

    def update(self, probs: torch.Tensor, boxes: torch.Tensor, mask: torch.Tensor) -> None:
        size = tuple(probs.shape[2:])
        cells: dict[tuple[int, ...], list[float]] = {}
        classes: dict[int, list[float]] = {}
        for b, box in enumerate(boxes):
            for index in voxels_of(size):
                if not mask[(b, 0, *index)]:
                    continue
                values = probs[(b, slice(None), *index)]
                classes.setdefault(int(values.argmax()), []).append(values.max().item())
                where = place(box, index, size)
                if all(0 <= x <= 1 for x in where):
                    cell = tuple(min(int(x * g), g - 1) for x, g in zip(where, self.grid, strict=True))
                    cells.setdefault(cell, []).append(values.max().item())
        for cell, values in cells.items():
            mean = sum(values) / len(values)
            self.map[cell] = self.momentum * self.map[cell] + (1 - self.momentum) * mean
        scores = {c: sum(values) / (len(values) + 1e-6) for c, values in classes.items()}
        for c, score in scores.items():
            self.scale[c] = score / max(scores.values())

    def threshold(self, box: torch.Tensor, index: tuple[int, ...], size: tuple[int, ...]) -> float:
        total = 0.0
        where = [min(max(x * g - 0.5, 0), g - 1) for x, g in zip(place(box, index, size), self.grid, strict=True)]
        for corner in voxels_of((2,) * len(size)):
            low = [math.floor(x) for x in where]
            share = math.prod(x - a if up else 1 - (x - a) for x, a, up in zip(where, low, corner, strict=True))
            cell = tuple(min(a + up, g - 1) for a, up, g in zip(low, corner, self.grid, strict=True))
            total += share * self.map[cell]
        return total


def test_vector_of_one_row() -> None:
    thresholds = DynamicThresholdMap(2, (4,), momentum=0.9, initial=0.5)
    thresholds.update(ROW_PROBS)
    torch.testing.assert_close(thresholds.map, torch.tensor([0.54, 0.51, 0.53, 0.505]))
    torch.testing.assert_close(thresholds.scale, torch.tensor([0.9, 1.0]))
    both = thresholds.thresholds()
    assert both.shape == (1, 2, 4)
    at_guess = both.gather(1, ROW_PROBS.argmax(1, keepdim=True))[0, 0]
    torch.testing.assert_close(at_guess, torch.tensor([0.54, 0.51, 0.477, 0.4545]))
    confidence = torch.tensor([[[0.9, 0.6, 0.8, 0.55]]])
    assert torch.equal(thresholds.weights(ROW_PROBS), confidence)
    assert torch.equal(thresholds.weights(ROW_PROBS, hard=True), torch.ones(1, 1, 4))


def test_vector_in_which_nothing_passes() -> None:
    thresholds = DynamicThresholdMap(2, (4,), momentum=0.99, initial=0.99)
    thresholds.update(ROW_PROBS)
    torch.testing.assert_close(thresholds.map, torch.tensor([0.9891, 0.9861, 0.9881, 0.9856]))
    at_guess = thresholds.thresholds().gather(1, ROW_PROBS.argmax(1, keepdim=True))[0, 0]
    torch.testing.assert_close(at_guess, torch.tensor([0.9891, 0.9861, 0.88929, 0.88704]))
    assert not thresholds.weights(ROW_PROBS).any()
    assert not thresholds.weights(ROW_PROBS, hard=True).any()


@pytest.mark.parametrize("dim", [2, 3])
def test_against_a_loop_over_voxels(dim: int) -> None:
    shape, grid = PLACES[dim]
    thresholds, naive = DynamicThresholdMap(shape[1], grid, 0.7), Naive(shape[1], grid, 0.7)
    for seed in range(3):
        probs, boxes = probabilities(shape, seed), some_boxes(shape[0], dim, seed)
        mask = torch.rand(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(seed)) > 0.2
        thresholds.update(probs, boxes, mask)
        naive.update(probs, boxes, mask)
    assert thresholds.scale.tolist() == pytest.approx(naive.scale, rel=1e-5)
    assert thresholds.map.flatten().tolist() == pytest.approx([naive.map[cell] for cell in voxels_of(grid)], rel=1e-5)
    assert len(set(naive.map.values())) > 10
    read, weights = thresholds.thresholds(boxes, shape[2:]), thresholds.weights(probs, boxes)
    assert read.shape == shape
    for b, box in enumerate(boxes):
        for index in voxels_of(shape[2:]):
            expected = naive.threshold(box, index, shape[2:])
            values = probs[(b, slice(None), *index)]
            for c in range(shape[1]):
                assert read[(b, c, *index)].item() == pytest.approx(expected * naive.scale[c], abs=1e-5)
            passes = values.max().item() > expected * naive.scale[int(values.argmax())]
            assert weights[(b, 0, *index)].item() == (values.max().item() if passes else 0.0)
    assert 0 < (weights > 0).float().mean() < 1


def test_patch_frame_is_the_literal_equations() -> None:
    probs = probabilities((4, 3, 5, 6))
    thresholds = DynamicThresholdMap(3, (5, 6), 0.9)
    thresholds.update(probs)
    torch.testing.assert_close(thresholds.map, 0.9 / 3 + 0.1 * probs.amax(1).mean(0))
    expected = thresholds.scale.view(1, 3, 1, 1) * thresholds.map
    assert torch.equal(thresholds.thresholds(size=(5, 6)), expected)
    assert torch.equal(thresholds.thresholds(), expected)


def test_mirrored_patch_is_the_same_voxels() -> None:
    probs, boxes = probabilities((2, 3, 8, 6)), torch.tensor([[[0.1, 0.7], [0.2, 0.5]], [[0.3, 1.1], [0.6, 0.9]]])
    mirrored = boxes.clone()
    mirrored[:, 1] = boxes[:, 1].flip(1)
    plain, other = DynamicThresholdMap(3, (16, 16), 0.5), DynamicThresholdMap(3, (16, 16), 0.5)
    plain.update(probs, boxes)
    other.update(probs.flip(3), mirrored)
    torch.testing.assert_close(other.map, plain.map)
    torch.testing.assert_close(other.weights(probs.flip(3), mirrored).flip(3), plain.weights(probs, boxes))


def test_only_touched_cells_move_and_what_lies_outside_is_ignored() -> None:
    thresholds = DynamicThresholdMap(2, (4, 4), 0.5, initial=0.25)
    probs = torch.cat([torch.full((1, 1, 4, 4), 0.9), torch.full((1, 1, 4, 4), 0.1)], 1)
    thresholds.update(probs, torch.tensor([[[0.5, 1.5], [0.0, 0.5]]]))  # the lower half lies outside
    expected = torch.full((4, 4), 0.25)
    expected[2:, :2] = 0.5 * 0.25 + 0.5 * 0.9
    torch.testing.assert_close(thresholds.map, expected)
    thresholds.update(probs, torch.tensor([[[1.0, 2.0], [-1.0, 0.0]]]))
    torch.testing.assert_close(thresholds.map, expected)


def test_several_samples_in_a_cell_are_one_step_with_their_mean() -> None:
    thresholds = DynamicThresholdMap(2, (1,), 0.5, initial=0.0)
    probs = torch.tensor([[[0.6, 0.7], [0.4, 0.3]], [[0.8, 0.9], [0.2, 0.1]]])
    thresholds.update(probs, torch.tensor([[[0.0, 1.0]], [[0.2, 0.6]]]))
    assert thresholds.map.item() == pytest.approx(0.5 * 0.75)


def test_absent_class_keeps_its_scale_and_an_empty_mask_changes_nothing() -> None:
    thresholds = DynamicThresholdMap(3, (4,), 0.9)
    thresholds.update(torch.cat([ROW_PROBS, torch.zeros(1, 1, 4)], 1))
    assert thresholds.scale.tolist() == pytest.approx([0.9, 1.0, 1.0])
    only_class_1 = torch.tensor([0.1, 0.8, 0.1]).view(1, 3, 1).expand(1, 3, 4)
    thresholds.update(only_class_1)
    assert thresholds.scale.tolist() == pytest.approx([0.9, 1.0, 1.0])
    before = {name: value.clone() for name, value in thresholds.state_dict().items()}
    thresholds.update(only_class_1, mask=torch.zeros(1, 1, 4, dtype=torch.bool))
    assert all(torch.equal(before[name], value) for name, value in thresholds.state_dict().items())


def test_what_is_not_a_number_does_not_count() -> None:
    thresholds, other = DynamicThresholdMap(2, (4,), 0.9), DynamicThresholdMap(2, (4,), 0.9)
    broken = ROW_PROBS.clone()
    broken[..., 1] = torch.nan
    thresholds.update(broken)
    other.update(ROW_PROBS, mask=torch.tensor([True, False, True, True]).view(1, 1, 4))
    assert torch.equal(thresholds.map, other.map)
    assert torch.equal(thresholds.scale, other.scale)
    assert thresholds.weights(broken)[0, 0, 1] == 0
    assert thresholds.weights(broken).isfinite().all()


def test_state_goes_round_and_sums_can_be_reduced() -> None:
    probs, boxes = probabilities((2, 3, 4, 4)), some_boxes(2, 2)
    first = DynamicThresholdMap(3, (6, 6), 0.8)
    first.update(probs, boxes)
    second = DynamicThresholdMap(3, (6, 6), 0.8)
    second.load_state_dict(first.state_dict())
    shared = DynamicThresholdMap(3, (6, 6), 0.8, reduce=lambda sums: 2 * sums)  # as if two processes had this batch
    shared.load_state_dict(first.state_dict())
    for one in (first, second, shared):
        one.update(probs.flip(0), boxes)
    assert torch.equal(first.map, second.map)
    torch.testing.assert_close(first.map, shared.map)
    torch.testing.assert_close(first.scale, shared.scale)


def test_half_precision_and_autocast_calculate_in_full_precision() -> None:
    probs, boxes = probabilities((2, 3, 8, 8)), some_boxes(2, 2)
    plain, autocast = DynamicThresholdMap(3, (6, 6), 0.5), DynamicThresholdMap(3, (6, 6), 0.5)
    plain.update(probs, boxes)
    with torch.autocast("cpu", torch.bfloat16):
        autocast.update(probs, boxes)
        weights = autocast.weights(probs, boxes)
    assert torch.equal(plain.map, autocast.map)
    assert torch.equal(plain.weights(probs, boxes), weights)
    assert plain.weights(probs.half(), boxes).dtype == torch.float32


def test_no_gradient_and_wrong_momentum() -> None:
    probs = probabilities((1, 2, 4)).requires_grad_()
    thresholds = DynamicThresholdMap(2, (4,), 0.9)
    thresholds.update(probs)
    assert not thresholds.map.requires_grad
    assert not thresholds.weights(probs).requires_grad
    with pytest.raises(ValueError, match="momentum"):
        DynamicThresholdMap(2, (4,), 1.5)


SEQUENCE = torch.tensor([[0.90, 0.50, 0.10], [0.92, 0.40, 0.10], [0.93, 0.45, 0.30]], dtype=torch.float64)


def test_difficulty_of_the_code_by_hand() -> None:
    weights = DifficultyWeights(3, mode="adnd")
    expected = [(0.0923880, 0.1054452, 0.1494798), (0.0910574, 0.8938633, 0.1497904), (0.0897302, 0.8858743, 0.1455864)]
    for dice, values in zip(SEQUENCE, expected, strict=True):
        assert weights.update(dice).tolist() == pytest.approx(values, abs=1e-6)


def test_difficulty_over_a_window_by_hand() -> None:
    weights = DifficultyWeights(3, mode="window")
    for dice in SEQUENCE:
        found = weights.update(dice)
    assert (found / 3).tolist() == pytest.approx([0.0078957, 0.7179082, 0.0238080], abs=1e-6)
    short = DifficultyWeights(3, momentum_steps=1, mode="window")
    for dice in SEQUENCE:
        found = short.update(dice)
    last = [0.01 * math.log(0.93 / 0.92), 0.05 * math.log(0.45 / 0.40), 0.2 * math.log(3)]
    expected = [
        3 * (1 - now) * (1e-8 / (change + 1e-8)) ** 0.2 for now, change in zip(SEQUENCE[2].tolist(), last, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_default_difficulty_against_a_loop() -> None:
    weights, dice = DifficultyWeights(2, momentum_steps=10), [0.2, 0.5, 0.4, 0.45, 0.6, 0.6]
    learned = forgotten = 0.0
    badness, before = 1.0, dice[0]
    for now in dice:
        change = (now - before) * math.log(now / before)
        learned = 0.9 * learned + 0.1 * (change if now > before else 0)
        forgotten = 0.9 * forgotten + 0.1 * (change if now < before else 0)
        badness, before = 0.9 * badness + 0.1 * (1 - now), now
        difficulty = min(3.0, max(1 / 3, ((forgotten + 1e-8) / (learned + 1e-8)) ** 0.2))
        found = weights.update(torch.tensor([now, 1.0], dtype=torch.float64))
        assert found[0].item() == pytest.approx(2 * badness * difficulty, rel=1e-9)
    assert found[1].item() == pytest.approx(2 * 0.9**6, rel=1e-9)  # always perfect


@pytest.mark.parametrize("mode", ["default", "adnd", "window"])
def test_an_absent_class_keeps_its_state(mode: str) -> None:
    with_gap, without = DifficultyWeights(2, 10, mode), DifficultyWeights(2, 10, mode)
    for dice in ([0.3, 0.2], [0.5, torch.nan], [0.4, 0.6]):
        found = with_gap.update(torch.tensor(dice))
    for dice in ([0.3, 0.2], [0.4, 0.6]):
        expected = without.update(torch.tensor(dice))
    assert found[1] == expected[1]
    assert found[0] != expected[0]
    assert DifficultyWeights(2, 10, mode).update(torch.tensor([torch.nan, 0.0])).isfinite().all()


@pytest.mark.parametrize("mode", ["default", "adnd", "window"])
def test_difficulty_goes_on_from_its_state(mode: str) -> None:
    first, second = DifficultyWeights(3, 50, mode), DifficultyWeights(3, 50, mode)
    first.update(SEQUENCE[0])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.update(SEQUENCE[1]), second.update(SEQUENCE[1]))
    assert not list(first.parameters())


def test_a_falling_class_gets_more_weight_than_a_rising_one() -> None:
    weights = DifficultyWeights(2)
    for step in range(10):
        found = weights.update(torch.tensor([0.5 + 0.03 * step, 0.5 - 0.03 * step]))
        assert found.max() <= 3 * 2
    assert found[1] > 2 * found[0]


@pytest.mark.parametrize("options", [{"momentum_steps": 0}, {"mode": "none"}])
def test_impossible_difficulty(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="momentum_steps must be"):
        DifficultyWeights(2, **options)  # type: ignore[arg-type]
