from __future__ import annotations

import math
import weakref

import pytest
import torch
from torch import Tensor

from nnssl.ingredients.mixing import copy_paste_mask
from nnssl.ingredients.supervised import masked_dice_bce, masked_dice_ce
from nnssl_trainers.parts.segmentation_loss import MixedSegmentationLoss, SegmentationLoss, Side, known_voxels


def draw(classes: int, sizes: tuple[int, ...]) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(2, classes, size, size, generator=generator) for size in sizes]
    labels = torch.randint(classes, (2, 1, sizes[0], sizes[0]), generator=generator)
    mask = (torch.rand(2, 1, sizes[0], sizes[0], generator=generator) > 0.3).float()
    return outputs, labels, mask


def test_uniform_probabilities_have_a_known_loss() -> None:
    logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
    target[..., :2, :] = 1
    loss = SegmentationLoss("squared_batch")([logits], target, torch.ones(1, 1, 4, 4))
    dice = 1 - 2 * 8 * 0.5 / (16 * 0.25 + 8)  # the same for both classes
    assert loss.item() == pytest.approx((dice + math.log(2)) / 2, rel=1e-6)


def test_outputs_have_weights_and_coarse_outputs_take_the_nearest_label() -> None:
    outputs, labels, mask = draw(3, (8, 4, 2))
    found = SegmentationLoss("squared_batch", (1.0, 0.5, 0.0))(outputs, labels, mask)
    coarse = (slice(None), slice(None), slice(1, None, 2), slice(1, None, 2))  # nearest-exact takes the odd voxels
    expected = masked_dice_ce(outputs[0], labels[:, 0], mask) + 0.5 * masked_dice_ce(
        outputs[1], labels[coarse][:, 0], mask[coarse]
    )
    torch.testing.assert_close(found, expected)


def test_a_network_may_have_fewer_outputs_than_weights() -> None:
    outputs, labels, mask = draw(3, (8,))
    one = SegmentationLoss("linear_sample", (1.0,))(outputs, labels, mask)
    assert torch.equal(SegmentationLoss("linear_sample", (1.0, 0.5))(outputs, labels, mask), one)
    sides = Side(labels), Side(labels)
    mixed = MixedSegmentationLoss("linear_sample", (0.25, 0.5))(outputs, *sides, mask)
    torch.testing.assert_close(mixed, MixedSegmentationLoss("linear_sample")(outputs, *sides, mask))


def test_voxels_outside_the_mask_and_the_ignore_label_do_not_count() -> None:
    (logits,), labels, mask = draw(3, (8,))
    loss = SegmentationLoss("squared_batch", ignore_label=9)
    value = loss([logits], labels, mask)
    assert torch.equal(loss([logits], torch.where(mask == 1, labels, (labels + 1) % 3), mask), value)
    torch.testing.assert_close(loss([logits], torch.where(mask == 1, labels, 9), torch.ones_like(mask)), value)
    assert not torch.equal(loss([logits], (labels + 1) % 3, mask), value)


def test_regions_are_sigmoids_with_the_ignore_label_as_last_channel() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 2, 8, 8, generator=generator)
    target = torch.randint(2, (2, 3, 8, 8), generator=generator).float()
    mask = torch.ones(1, 1, 8, 8)
    loss = SegmentationLoss("squared_batch", regions=True, ignore_label=3)
    expected = masked_dice_bce(logits, target[:, :2], 1 - target[:, 2:], "squared_batch")
    torch.testing.assert_close(loss([logits], target, mask), expected)
    all_known = masked_dice_bce(logits, target[:, :2], mask, "squared_batch")
    torch.testing.assert_close(loss([logits], target[:, :2], mask), all_known)


def naive_mix(  # noqa: PLR0917
    logits: Tensor, y: Tensor, q: Tensor, mask: Tensor, w_out: float, w_in: float, form: str, regions: bool = False
) -> float:
    """Return (w_out + w_in)·½(Dice + CE) voxel by voxel; labels -1 do not count. All tensors (B, ..., *S)."""
    scores = logits.sigmoid() if regions else logits.softmax(1)
    batches = []
    for b in range(len(logits)):
        rows = []
        flat = [t[b].flatten(1).T.tolist() for t in (scores, y, q, mask.expand(len(logits), *mask.shape[1:]))]
        for p, outer, inner, (m,) in zip(*flat, strict=True):
            labels, weight = (outer, w_out) if m else (inner, w_in)
            hot = labels if regions else [float(labels[0] == c) for c in range(len(p))]
            if labels[0] >= 0:
                rows.append((p, hot, weight))
        batches.append(rows)
    total = sum(w for rows in batches for *_, w in rows)

    def entropy_of(p: list[float], hot: list[float]) -> float:
        if regions:
            return -sum(math.log(s if h else 1 - s) for s, h in zip(p, hot, strict=True)) / len(p)
        return -sum(h * math.log(s) for s, h in zip(p, hot, strict=True))

    ce = sum(w * entropy_of(p, hot) for rows in batches for p, hot, w in rows) / total if total else 0.0
    groups = [[row for rows in batches for row in rows]] if form == "squared_batch" else batches
    power, epsilon = (2, 1e-10) if form == "squared_batch" else (1, 1e-5)
    dice = []
    for rows in groups:
        for c in range(scores.shape[1]):
            overlap = sum(w * p[c] * hot[c] for p, hot, w in rows)
            sizes = sum(w * (p[c] ** power + hot[c] ** power) for p, hot, w in rows)
            dice.append(1 - (2 * overlap + epsilon) / (sizes + epsilon))
    return (w_out + w_in) * 0.5 * (sum(dice) / len(dice) + ce)


@pytest.mark.parametrize("form", ["squared_batch", "linear_sample"])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_one_dice_over_a_mix_against_a_loop(shape: tuple[int, ...], regions: bool, form: str) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)
    channels, classes = (3, 2) if regions else (1, 3)
    y, q = torch.randint(classes, (2, 2, channels, *shape), generator=generator).double()
    mask = copy_paste_mask(shape)
    loss = MixedSegmentationLoss(form, regions=regions)
    for weights in ((1.0, 0.5), (1.0, 1.0), (0.5, 1.0), (1.0, 0.0)):
        found = loss([logits], Side(y, weights[0]), Side(q, weights[1]), mask)
        expected = naive_mix(logits, y, q, mask, *weights, form, regions)
        assert found.item() == pytest.approx(expected, rel=1e-5)
    same = SegmentationLoss(form, regions=regions)([logits], torch.where(mask > 0, y, q), torch.ones_like(mask))
    torch.testing.assert_close(loss([logits], Side(y), Side(q), mask), 2 * same)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("kind", ["all inside", "all outside", "nothing counts"])
def test_a_side_without_voxels_adds_nothing(kind: str, separate: bool) -> None:
    (logits,), y, _ = draw(3, (8,))
    q = (y + 1) % 3
    mask = torch.zeros(1, 1, 8, 8) if kind == "all inside" else torch.ones(1, 1, 8, 8)
    nothing = torch.zeros(2, 1, 8, 8)
    counts = nothing if kind == "nothing counts" else None
    loss = MixedSegmentationLoss("squared_batch", separate_sides=separate)
    logits = logits.requires_grad_()
    found = loss([logits], Side(y, 1.0, counts), Side(q, 1.0, counts), mask)
    found.backward()
    alone = SegmentationLoss("squared_batch")([logits], q if kind == "all inside" else y, torch.ones(1, 1, 8, 8))
    factor = 0.0 if kind == "nothing counts" else 1.0 if separate else 2.0
    assert found.item() == pytest.approx(factor * alone.item(), abs=1e-6)
    assert bool(logits.grad.any()) == (kind != "nothing counts")


@pytest.mark.parametrize("separate", [False, True])
def test_voxels_of_a_side_that_do_not_count(separate: bool) -> None:
    (logits,), y, sure = draw(3, (8,))
    q, mask = (y + 1) % 3, copy_paste_mask((8, 8))
    loss = MixedSegmentationLoss("squared_batch", separate_sides=separate)
    found = loss([logits], Side(y), Side(q, 0.5, sure), mask)
    if separate:
        expected = masked_dice_ce(logits, y[:, 0], mask) + 0.5 * masked_dice_ce(logits, q[:, 0], (1 - mask) * sure)
    else:
        expected = torch.tensor(naive_mix(logits, y, torch.where(sure > 0, q, -1), mask, 1.0, 0.5, "squared_batch"))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    changed = loss([logits], Side(y), Side(torch.where(sure > 0, q, y), 0.5, sure), mask)
    assert torch.equal(changed, found)


@pytest.mark.parametrize("regions", [False, True])
def test_the_ignore_label_of_one_side_of_a_mix(regions: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, mask = torch.randn(2, 2, 6, 6, generator=generator), copy_paste_mask((6, 6))
    q = torch.randint(2, (2, 2 if regions else 1, 6, 6), generator=generator)  # pseudo-labels have no ignore label
    y = torch.randint(2, (2, 2 if regions else 1, 6, 6), generator=generator).float()
    ignored = torch.rand(2, 1, 6, 6, generator=generator) > 0.5
    target = torch.cat([y, ignored.float()], 1) if regions else torch.where(ignored, 9.0, y)
    loss = MixedSegmentationLoss("squared_batch", regions=regions, ignore_label=9)
    known = torch.where(ignored, -1.0, y)
    expected = naive_mix(logits, known, q, mask, 1.0, 0.5, "squared_batch", regions)
    assert loss([logits], Side(target), Side(q, 0.5), mask).item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(known_voxels(target, regions, 9), ~ignored)
    assert known_voxels(target[:, :1], regions, None).all()


def test_false_pseudo_labels_pull_less_and_false_positives_are_pushed_away_more_than_with_separate_sides() -> None:
    size = 64
    mask = torch.ones(1, 1, size, size)
    mask[..., 10:52, 10:52] = 0
    y, q = torch.zeros(2, 1, 1, size, size)
    y[..., 54:62, 5:60] = 1  # a structure outside the box
    blob = (slice(None), 1, slice(28, 33), slice(28, 34))  # 30 voxels
    empty = torch.zeros_like(q)

    def slope(pseudo: Tensor, separate: bool) -> float:
        logits = torch.zeros(1, 2, size, size)
        logits[:, 1] = torch.where(y[:, 0] > 0, 5.0, -5.0)
        logits[blob] = 0.0
        loss = MixedSegmentationLoss("squared_batch", separate_sides=separate)
        value = loss([logits.requires_grad_()], Side(y), Side(pseudo, 0.5), mask)
        return torch.autograd.grad(value, logits)[0][blob].abs().sum().item()

    false_labels = empty.clone()
    false_labels[..., blob[2], blob[3]] = 1
    pull = [slope(false_labels, separate) for separate in (False, True)]
    assert pull[1] > 6 * pull[0]
    push = [slope(empty, separate) for separate in (False, True)]
    assert push[0] > 1.3 * push[1]


def test_separate_sides_have_one_target_each_and_the_mean_over_outputs() -> None:
    outputs, outside, mask = draw(3, (8, 4))
    inside = (outside + 1) % 3
    coarse = (slice(None), slice(None), slice(1, None, 2), slice(1, None, 2))
    expected = torch.zeros(())
    for weight, z, (y, q, m) in (
        (1.0, outputs[0], (outside, inside, mask)),
        (0.5, outputs[1], (outside[coarse], inside[coarse], mask[coarse])),
    ):
        expected += weight * (2.0 * masked_dice_ce(z, y[:, 0], m) + 0.25 * masked_dice_ce(z, q[:, 0], 1 - m))
    loss = MixedSegmentationLoss("squared_batch", (1.0, 0.5), separate_sides=True)
    found = loss(outputs, Side(outside, 2.0), Side(inside, 0.25), mask)
    torch.testing.assert_close(found, expected / 1.5)


def test_one_dice_at_every_output_is_the_mean_over_outputs() -> None:
    outputs, outside, mask = draw(3, (8, 4))
    inside = (outside + 1) % 3
    coarse = (slice(None), slice(None), slice(1, None, 2), slice(1, None, 2))
    fine_loss = naive_mix(outputs[0], outside, inside, mask, 1.0, 0.5, "squared_batch")
    coarse_loss = naive_mix(outputs[1], outside[coarse], inside[coarse], mask[coarse], 1.0, 0.5, "squared_batch")
    found = MixedSegmentationLoss("squared_batch", (1.0, 0.5))(outputs, Side(outside), Side(inside, 0.5), mask)
    assert found.item() == pytest.approx((fine_loss + 0.5 * coarse_loss) / 1.5, rel=1e-5)


@pytest.mark.parametrize("separate", [False, True])
def test_the_loss_of_a_mix_keeps_its_gradient_alone(separate: bool) -> None:
    loss = MixedSegmentationLoss("squared_batch", (1.0, 0.5), separate_sides=separate)
    outputs = [torch.randn(2, 3, size, size).requires_grad_() for size in (32, 16)]
    labels = [torch.randint(3, (2, 1, 32, 32)) for _ in range(2)]
    kept: list[weakref.ref[Tensor]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(outputs, Side(labels[0]), Side(labels[1], 0.5), copy_paste_mask((32, 32)))
        voxels = sum(tensor.numel() for tensor in (each() for each in kept) if tensor is not None)
    assert sum(z.numel() for z in outputs) <= voxels < 1.01 * sum(z.numel() for z in outputs)
    value.backward()
    assert all(z.grad is not None for z in outputs)
