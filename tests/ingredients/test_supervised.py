from __future__ import annotations

import math

import pytest
import torch

from nnssl.ingredients.supervised import (
    dice_ce,
    dice_of_labels,
    foreground_dice,
    masked_cross_entropy,
    masked_dice,
    masked_dice_bce,
    masked_dice_ce,
    masked_mean,
)
from tests.ingredients.cce_vectors import LABELS, PROBS_A, PROBS_B

FORMS = ["squared_batch", "linear_sample"]
SHAPES = [(2, 3, 4, 5), (3, 2, 3, 4, 2)]


def naive_dice(probs: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor, form: str) -> float:
    """Dice loss by loops over samples, channels and voxels; all three tensors of one shape."""
    samples = range(probs.shape[0])
    groups = [list(samples)] if form == "squared_batch" else [[b] for b in samples]
    power, epsilon = (2, 1e-10) if form == "squared_batch" else (1, 1e-5)
    losses = []
    for group in groups:
        for c in range(probs.shape[1]):
            overlap = sizes = 0.0
            for b in group:
                voxels = [x[b, c].flatten().tolist() for x in (probs, truth, mask)]
                for p, t, m in zip(*voxels, strict=True):
                    overlap += 2 * m * p * t
                    sizes += m * (p**power + t**power)
            losses.append(1 - (overlap + epsilon) / (sizes + epsilon))
    return sum(losses) / len(losses)


def naive_mean(values: list[float], mask: torch.Tensor) -> float:
    weights = mask.flatten().tolist()
    return sum(m * v for m, v in zip(weights, values, strict=True)) / sum(weights)


def example(shape: tuple[int, ...], shared_mask: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    batch = 1 if shared_mask else shape[0]
    return logits, target, (torch.rand((batch, 1, *shape[2:]), generator=generator) > 0.4).double()


@pytest.mark.parametrize("dice", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shared_mask", [False, True])
def test_softmax_head_against_loops(dice: str, shape: tuple[int, ...], shared_mask: bool) -> None:
    logits, target, mask = example(shape, shared_mask)
    probs = logits.softmax(1)
    one_hot = torch.zeros_like(probs).scatter_(1, target.unsqueeze(1), 1.0)
    entropies = (-(probs.log() * one_hot).sum(1)).flatten().tolist()
    cross_entropy = naive_mean(entropies, mask.expand(shape[0], *mask.shape[1:]))
    expected = 0.5 * (naive_dice(probs, one_hot, mask.expand(shape), dice) + cross_entropy)
    assert masked_dice_ce(logits, target, mask, dice).item() == pytest.approx(expected, abs=1e-12)
    assert masked_dice_ce(logits, target, mask > 0, dice).item() == pytest.approx(expected, abs=1e-12)
    assert masked_cross_entropy(logits, target, mask).item() == pytest.approx(cross_entropy, abs=1e-12)


@pytest.mark.parametrize("dice", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shared_mask", [False, True])
def test_sigmoid_head_against_loops(dice: str, shape: tuple[int, ...], shared_mask: bool) -> None:
    logits, _, mask = example(shape, shared_mask)
    target = (torch.rand(shape, generator=torch.Generator().manual_seed(9)) > 0.6).double()
    probs = logits.sigmoid()
    entropies = (-target * probs.log() - (1 - target) * (1 - probs).log()).mean(1).flatten().tolist()
    expected = naive_dice(probs, target, mask.expand(shape), dice)
    expected = 0.5 * (expected + naive_mean(entropies, mask.expand(shape[0], *mask.shape[1:])))
    for labels in (target, target.float(), target.bool(), target.long()):
        assert masked_dice_bce(logits, labels, mask, dice).item() == pytest.approx(expected, abs=1e-12)


OUTSIDE_FIRST = {  # Dice outside and inside, cross-entropy outside and inside, weighted sum
    ("x_l", "squared_batch"): (0.2004499, 0.2737327, 0.3778304, 0.6121919, 0.5106213),
    ("x_u", "squared_batch"): (0.2358621, 0.0912442, 0.5472899, 0.2990012, 0.3909107),
    ("x_l", "linear_sample"): (0.3805163, 0.4010015, 0.3778304, 0.6121919, 0.6324717),
    ("x_u", "linear_sample"): (0.3813722, 0.2506259, 0.5472899, 0.2990012, 0.5069791),
}


@pytest.mark.parametrize(("mixture", "dice"), OUTSIDE_FIRST)
def test_copy_paste_loss_by_hand(mixture: str, dice: str) -> None:
    foreground = torch.tensor([[0.2, 0.7, 0.6], [0.4, 0.9, 0.3], [0.1, 0.2, 0.5]], dtype=torch.float64)
    logits = torch.stack([torch.zeros_like(foreground), foreground.logit()])[None]
    truth = torch.tensor([[[0, 1, 1], [0, 1, 0], [0, 0, 0]]])
    pseudo = torch.tensor([[[0, 0, 1], [1, 1, 1], [0, 0, 1]]])
    mask = torch.ones(1, 1, 3, 3)
    mask[..., :2, :2] = 0
    sides = [(truth, mask, 1.0), (pseudo, 1 - mask, 0.5)]
    if mixture == "x_u":
        sides = [(pseudo, mask, 0.5), (truth, 1 - mask, 1.0)]
    one_hots = [torch.stack([1 - y, y], 1) for y, _, _ in sides]
    terms = [masked_dice(logits.softmax(1), t, m, dice) for t, (_, m, _) in zip(one_hots, sides, strict=True)]
    terms += [masked_cross_entropy(logits, y, m) for y, m, _ in sides]
    terms += [sum(w * masked_dice_ce(logits, y, m, dice) for y, m, w in sides)]
    assert [term.item() for term in terms] == pytest.approx(OUTSIDE_FIRST[mixture, dice], abs=1e-6)


@pytest.mark.parametrize("dice", FORMS)
@pytest.mark.parametrize("ignore_label", [-1, 1, 255])
def test_ignored_voxels_do_not_count(dice: str, ignore_label: int) -> None:
    logits, target, mask = example((2, 3, 4, 5), shared_mask=True)
    unreadable = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) > 0.7
    unreadable |= target == ignore_label
    kept = mask * ~unreadable.unsqueeze(1)
    expected = masked_dice_ce(logits, target, kept, dice)
    ignored = target.masked_fill(unreadable, ignore_label)
    torch.testing.assert_close(masked_dice_ce(logits, ignored, mask, dice, ignore_label=ignore_label), expected)
    with_noise = torch.where(kept > 0, logits, torch.randn_like(logits))
    torch.testing.assert_close(masked_dice_ce(with_noise, target, kept, dice), expected)


@pytest.mark.parametrize("dice", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nothing_counts(dice: str, dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()
    target, empty = torch.zeros(2, 4, 4, dtype=torch.long), torch.zeros(1, 1, 4, 4)
    regions = torch.zeros(2, 3, 4, 4)
    for loss in (
        masked_dice_ce(logits, target, empty, dice),
        masked_dice_ce(logits, target + 9, 1 - empty, dice, ignore_label=9),
        masked_dice_bce(logits, regions, empty, dice),
    ):
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dice", FORMS)
def test_perfect_and_worst_prediction(dice: str) -> None:
    target = torch.tensor([[[0, 1], [1, 0]], [[1, 1], [0, 0]]])
    everything = torch.ones(1, 1, 2, 2)
    one_hot = torch.stack([1 - target, target], 1).float()
    right = masked_dice_ce(200 * one_hot, target, everything, dice).item()
    wrong = masked_dice_ce(200 * (1 - one_hot), target, everything, dice).item()
    assert right == pytest.approx(0.0, abs=1e-6)
    assert wrong == pytest.approx(0.5 * (1 + 200), rel=1e-5)
    uncertain = masked_dice_bce(torch.zeros(2, 2, 2, 2), one_hot, everything, dice).item()
    overlap = 2 * 0.5 * 0.5 / (0.25 + 0.5) if dice == "squared_batch" else 2 * 0.5 * 0.5 / (0.5 + 0.5)
    assert uncertain == pytest.approx(0.5 * (1 - overlap + math.log(2)), abs=1e-5)


@pytest.mark.parametrize("dice", FORMS)
def test_gradient_goes_to_the_logits_where_voxels_count(dice: str) -> None:
    logits, target, mask = example((2, 3, 4, 5), shared_mask=False)
    logits.requires_grad_()
    regions = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    for loss in (masked_dice_ce(logits, target, mask, dice), masked_dice_bce(logits, regions, mask, dice)):
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.equal((gradient != 0).any(1, keepdim=True), mask > 0)
    masked_dice_bce(logits, regions, mask, dice).backward()
    assert regions.grad is None
    assert torch.autograd.gradcheck(lambda z: masked_dice_ce(z, target, mask, dice), logits)


def test_half_precision_is_summed_in_fp32() -> None:
    logits = torch.randn(1, 2, 64, 64, 24, generator=torch.Generator().manual_seed(2)).half()
    target, mask = (logits[:, 0] > 0.3).long(), torch.ones(1, 1, 64, 64, 24, dtype=torch.half)
    for dice in FORMS:
        loss = masked_dice_ce(logits, target, mask, dice)  # the sums pass 65504, the largest half
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), masked_dice_ce(logits.double(), target, mask.double(), dice))
        assert masked_dice_bce(logits, logits > 0, mask, dice).dtype == torch.float32


def test_no_mask_is_a_mask_of_ones_and_unknown_forms_are_refused() -> None:
    logits, target, mask = example((2, 3, 4, 5), shared_mask=True)
    everywhere = torch.ones_like(mask)
    torch.testing.assert_close(masked_mean(logits), masked_mean(logits, everywhere))
    torch.testing.assert_close(masked_cross_entropy(logits, target), masked_cross_entropy(logits, target, everywhere))
    with pytest.raises(ValueError, match="dice must be"):
        masked_dice_ce(logits, target, mask, "cubic")


def test_foreground_dice() -> None:
    assert foreground_dice(PROBS_A, LABELS).item() == pytest.approx(0.098342, abs=1e-6)
    assert foreground_dice(PROBS_B, LABELS).item() == pytest.approx(0.051248, abs=1e-6)
    probs = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(8)).softmax(1).requires_grad_()
    target = torch.randint(4, (2, 5, 6), generator=torch.Generator().manual_seed(9))
    mask = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(10)) > 0.5
    one_hot = torch.nn.functional.one_hot(target, 4).movedim(-1, 1)[:, 1:]
    expected = naive_dice(probs[:, 1:], one_hot, mask.expand(one_hot.shape), "squared_batch")
    loss = foreground_dice(probs, target, mask)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert not probs.grad[:, 0].any()
    assert foreground_dice(probs, target, torch.zeros_like(mask)).item() == 0.0


def test_foreground_dice_of_next_to_nothing_is_a_half() -> None:
    probs = torch.zeros(1, 2, 10, 10)
    probs[:, 1] = 1e-5**0.5 / 10  # Σp² = 1e-5 = ε
    assert foreground_dice(probs, torch.zeros(1, 10, 10).long()).item() == pytest.approx(0.5, abs=1e-4)


def test_dice_of_equation_10_and_without_its_factor() -> None:
    foreground = torch.tensor([0.9, 0.2, 0.6, 0.4], dtype=torch.float64)
    probs = torch.stack([1 - foreground, foreground])[None].requires_grad_()
    labels = torch.tensor([1, 0, 1, 1])
    one_hot = torch.stack([1 - labels, labels])[None]
    by_class = [masked_dice(probs[:, c : c + 1], one_hot[:, c : c + 1]).item() for c in (1, 0)]
    halved = [masked_dice(probs[:, c : c + 1], one_hot[:, c : c + 1], dice="halved_batch").item() for c in (1, 0)]
    assert by_class == pytest.approx([0.130435, 0.262673], abs=1e-6)
    assert halved == pytest.approx([0.565217, 0.631336], abs=1e-6)
    assert masked_dice(probs, one_hot).item() == pytest.approx(0.196554, abs=1e-6)
    assert masked_dice(probs, one_hot, dice="halved_batch").item() == pytest.approx(0.598277, abs=1e-6)
    assert masked_dice(one_hot.double(), one_hot).item() == pytest.approx(0.0, abs=1e-9)
    assert masked_dice(one_hot.double(), one_hot, dice="halved_batch").item() == pytest.approx(0.5)
    assert masked_cross_entropy(probs.log(), labels[None]).item() == pytest.approx(0.438905, abs=1e-6)
    (whole,) = torch.autograd.grad(masked_dice(probs, one_hot), probs)
    (half,) = torch.autograd.grad(masked_dice(probs, one_hot, dice="halved_batch"), probs)
    torch.testing.assert_close(half, 0.5 * whole)


FG = torch.tensor([0.9, 0.2, 0.6], dtype=torch.float64)
THREE = torch.tensor([[[2.0, 0], [0, 1]], [[0, 1], [0, 0]], [[0, 0], [3, 2]]], dtype=torch.float64)[None]
THREE_LABELS, THREE_WEIGHTS = torch.tensor([[[0, 1], [2, 0]]]), torch.tensor([0.5, 1, 2], dtype=torch.float64)


def test_dice_ce_by_hand() -> None:
    logits = torch.stack([1 - FG, FG]).log().view(1, 2, 3, 1)
    assert dice_ce(logits, torch.tensor([0, 0, 1]).view(1, 3, 1)).item() == pytest.approx(0.7087951, abs=1e-6)
    loss = dice_ce(THREE, THREE_LABELS, THREE_WEIGHTS).item()
    assert loss == pytest.approx(0.3926343, abs=1e-6)
    dice = torch.tensor([0.7142634, 0.7637633, 0.7240663], dtype=torch.float64)
    adnd = 2 * loss - THREE_WEIGHTS[1:].mean().item()  # CE − mean w·D of the authors' code
    assert adnd == pytest.approx(-0.7147314, abs=1e-6)
    entropies = torch.tensor([[0.2395448, 1.4076060], [0.5514447, 0], [0.0949230, 0]], dtype=torch.float64).sum(1) / 4
    literal = (THREE_WEIGHTS * 0.5 * (entropies + 1 - dice)).mean().item()
    assert dice_ce(THREE, THREE_LABELS, THREE_WEIGHTS, form="literal").item() == pytest.approx(literal, abs=1e-6)


def naive_dice_ce(z: torch.Tensor, y: torch.Tensor, w: torch.Tensor, mask: torch.Tensor, form: str) -> float:
    """Return the loss by a loop over voxels; z (B, C, N), y and mask (B, N)."""
    p, classes = z.softmax(1), range(z.shape[1])
    total, weight, entropies, overlap, size = 0.0, 0.0, [0.0] * len(w), [0.0] * len(w), [0.0] * len(w)
    for b, v in mask.nonzero().tolist():
        label = int(y[b, v])
        entropy = -math.log(p[b, label, v])
        total, weight = total + w[label].item() * entropy, weight + w[label].item()
        entropies[label] += entropy / int(mask.sum())
        for c in classes:
            overlap[c] += p[b, c, v].item() * (label == c)
            size[c] += p[b, c, v].item() + (label == c)
    dice = [1 - (2 * overlap[c] + 1) / (size[c] + 1 + 1e-8) for c in classes]
    if form == "literal":
        return sum(w[c].item() * 0.5 * (entropies[c] + dice[c]) for c in classes) / len(w)
    return 0.5 * (total / weight + sum(w[c].item() * dice[c] for c in classes[1:]) / (len(w) - 1))


@pytest.mark.parametrize("form", ["normalised", "literal"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 2, 2, 3, 2)])
def test_dice_ce_against_loops(shape: tuple[int, ...], form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    w = torch.rand(shape[1], generator=generator, dtype=torch.float64)
    mask = torch.rand(shape[0], 1, *shape[2:], generator=generator) > 0.4
    loss = dice_ce(z, y, w, mask, form)
    expected = naive_dice_ce(z.detach().flatten(2), y.flatten(1), w, mask.flatten(1), form)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, z)
    assert (gradient.abs().sum(1, keepdim=True) > 0).eq(mask).all()
    assert torch.equal(dice_ce(z, y, torch.ones_like(w)), dice_ce(z, y))
    assert dice_ce(z, y, w, torch.zeros_like(mask), form).item() == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match="form"):
        dice_ce(z, y, form="eq. 3")


def test_dice_of_labels() -> None:
    ours, truth = torch.tensor([[[0, 1, 1, 3]]]), torch.tensor([[[0, 1, 0, 0]]])
    dice = dice_of_labels(ours, truth, 4)
    assert dice[:2].tolist() == pytest.approx([2 / 4, 2 / 3])
    assert dice[2].isnan()
    assert dice[3].item() == 0
    masked = dice_of_labels(ours, truth, 4, torch.tensor([[[[True, True, False, False]]]]))
    assert masked[:2].tolist() == [1, 1]
    assert masked[2:].isnan().all()
