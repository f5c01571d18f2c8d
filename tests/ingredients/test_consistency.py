from __future__ import annotations

import math

import pytest
import torch

from nnssl.ingredients.consistency import (
    confident_disagreement_mse,
    cosine_distance,
    entropy_filtered_loss,
    kl_weighted_cross_entropy,
    kl_weighted_cross_entropy_reference,
    probability_mse,
    relative_l2,
    robust_cross_entropy,
    soft_dice_distance,
    soft_dice_distillation,
)
from nnssl.ingredients.pseudo_labels import fuse_labels
from nnssl.ingredients.uncertainty import entropy_ignore_mask
from tests.ingredients.cce_vectors import LABELS, PROBS_A, PROBS_B


def naive(probs: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> float:
    total, count = 0.0, 0.0
    for b in range(probs.shape[0]):
        for index in torch.cartesian_prod(*[torch.arange(n) for n in probs.shape[2:]]).tolist():
            if mask[(b, 0, *index)]:
                p, q = probs[(b, slice(None), *index)], target[(b, slice(None), *index)]
                total += ((p - q) ** 2).mean().item()
                count += 1
    return total / count


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 3, 4, 2)])
def test_against_a_loop_over_voxels(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    probs = torch.rand(shape, generator=generator).softmax(1)
    target = torch.rand(shape, generator=generator).softmax(1)
    mask = torch.rand((shape[0], 1, *shape[2:]), generator=generator) > 0.4
    assert probability_mse(probs, target, mask).item() == pytest.approx(naive(probs, target, mask), rel=1e-5)
    everywhere = torch.ones_like(mask)
    torch.testing.assert_close(probability_mse(probs, target), probability_mse(probs, target, everywhere))


def test_hand_value_and_empty_mask() -> None:
    probs, target = torch.tensor([[[1.0]], [[0.0]]])[None], torch.tensor([[[0.0]], [[0.0]]])[None]
    assert probability_mse(probs, target).item() == 0.5
    nothing = probability_mse(probs.requires_grad_(), target, torch.zeros(1, 1, 1, 1))
    nothing.backward()
    assert nothing.item() == 0.0
    assert torch.equal(probs.grad, torch.zeros_like(probs))


def test_gradient_goes_to_the_student_only() -> None:
    probs, target = torch.rand(1, 2, 4, 4, requires_grad=True), torch.rand(1, 2, 4, 4, requires_grad=True)
    probability_mse(probs, target).backward()
    assert probs.grad.abs().sum() > 0
    assert target.grad is None


def foregrounds() -> tuple[torch.Tensor, torch.Tensor]:
    pair = torch.tensor([[[0.9, 0.2], [0.6, 0.4]], [[0.8, 0.3], [0.3, 0.7]]], dtype=torch.float64)
    first, second = torch.stack([1 - pair, pair], 1).unsqueeze(1)
    return first, second


def naive_dice(probs: torch.Tensor, target: torch.Tensor, form: str) -> float:
    losses = []
    batches = [slice(None)] if form == "squared" else [slice(b, b + 1) for b in range(probs.shape[0])]
    power, epsilon = (2, 1e-10) if form == "squared" else (1, 1e-5)
    for batch in batches:
        for c in range(probs.shape[1]):
            pairs = list(zip(probs[batch, c].flatten().tolist(), target[batch, c].flatten().tolist(), strict=True))
            sizes = sum(p**power + q**power for p, q in pairs)
            losses.append(1 - (2 * sum(p * q for p, q in pairs) + epsilon) / (sizes + epsilon))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 2, 3, 4, 2)])
@pytest.mark.parametrize("form", ["squared", "linear"])
def test_soft_dice_against_loops(shape: tuple[int, ...], form: str) -> None:
    generator = torch.Generator().manual_seed(5)
    probs, target = (3 * torch.randn((2, *shape), generator=generator, dtype=torch.float64)).softmax(2)
    assert soft_dice_distance(probs, target, form).item() == pytest.approx(naive_dice(probs, target, form), abs=1e-12)


@pytest.mark.parametrize("form", ["squared", "linear"])
def test_soft_dice_over_the_voxels_that_count(form: str) -> None:
    generator = torch.Generator().manual_seed(6)
    probs, target = (3 * torch.randn(2, 2, 3, 4, 6, generator=generator, dtype=torch.float64)).softmax(2)
    mask = torch.ones(1, 1, 4, 6, dtype=torch.bool)
    mask[..., 4:] = False
    found = soft_dice_distance(probs, target, form, mask)
    assert found.item() == pytest.approx(naive_dice(probs[..., :4], target[..., :4], form), abs=1e-12)
    assert soft_dice_distance(probs, target, form, torch.zeros_like(mask)).item() == pytest.approx(0.0, abs=1e-12)


def test_soft_dice_hand_values() -> None:
    first, second = foregrounds()
    hard = torch.nn.functional.one_hot(second.argmax(1), 2).movedim(-1, 1).double()
    assert soft_dice_distance(first, second).item() == pytest.approx(0.0811731, abs=1e-6)
    assert soft_dice_distance(first, second, "linear").item() == pytest.approx(0.4310766, abs=1e-6)
    assert soft_dice_distance(first, hard).item() == pytest.approx(0.2356944, abs=1e-6)
    assert soft_dice_distance(first[:, 1:], second[:, 1:]).item() == pytest.approx(0.0746269, abs=1e-6)
    assert soft_dice_distance(first[:, 1:], second[:, 1:], "linear").item() == pytest.approx(0.4095228, abs=1e-6)
    assert soft_dice_distance(first.half(), second.half()).dtype == torch.float32


def test_soft_dice_optimum_is_the_target_only_with_squares() -> None:
    target, sharper = foregrounds()[1], foregrounds()[1].square()
    sharper = sharper / sharper.sum(1, keepdim=True)
    assert soft_dice_distance(target, target).item() == pytest.approx(0.0, abs=1e-9)
    assert soft_dice_distance(sharper, target) > 0.01
    assert soft_dice_distance(sharper, target, "linear") < soft_dice_distance(target, target, "linear") - 0.01


@pytest.mark.parametrize("form", ["squared", "linear"])
def test_soft_dice_gradient_goes_to_the_first_prediction_only(form: str) -> None:
    first, second = (probs.requires_grad_() for probs in foregrounds())
    soft_dice_distance(first, second, form).backward()
    assert first.grad.abs().min() > 0
    assert second.grad is None


def test_soft_dice_unknown_form() -> None:
    with pytest.raises(ValueError, match="form must be"):
        soft_dice_distance(*foregrounds(), "squared_batch")


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 3, 4, 2)])
def test_robust_cross_entropy_against_a_loop_over_voxels(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    weights, mask = torch.rand(2, shape[0], 1, *shape[2:], generator=generator, dtype=torch.float64)
    mask = mask > 0.3
    total = 0.0
    for b in range(shape[0]):
        for index in torch.cartesian_prod(*[torch.arange(n) for n in shape[2:]]).tolist():
            z = logits[(b, slice(None), *index)] / 0.5
            log_probability = (z[labels[(b, *index)]] - z.exp().sum().log()).item()
            total -= mask[(b, 0, *index)].item() * weights[(b, 0, *index)].item() * log_probability
    loss = robust_cross_entropy(logits, labels, weights, 0.5, mask)
    assert loss.item() == pytest.approx(total / mask.sum().item())
    everywhere = robust_cross_entropy(logits, labels, weights, 0.5, torch.ones_like(mask))
    assert robust_cross_entropy(logits, labels, weights, 0.5).item() == pytest.approx(everywhere.item())


def test_robust_cross_entropy_hand_value_and_voxels_that_do_not_pass() -> None:
    logits = torch.tensor([[[0.0, 1.0]], [[math.log(3.0) / 2, 0.0]]])[None].requires_grad_()  # (1, 2, 1, 2)
    labels, weights = torch.tensor([[[1, 0]]]), torch.tensor([[[[0.8, 0.0]]]])
    loss = robust_cross_entropy(logits, labels, weights.requires_grad_(), temperature=0.5)
    assert loss.item() == pytest.approx(0.8 * math.log(4 / 3) / 2)
    loss.backward()
    assert weights.grad is None
    assert logits.grad[..., 0].all()
    assert not logits.grad[..., 1].any()


def test_robust_cross_entropy_is_zero_where_nothing_counts_and_full_precision() -> None:
    logits, labels = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    nothing, everything = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    for weights, mask in ((nothing, None), (everything, nothing)):
        z = logits.clone().requires_grad_()
        loss = robust_cross_entropy(z, labels, weights, 0.5, mask)
        loss.backward()
        assert loss.item() == 0.0
        assert not z.grad.any()
    assert robust_cross_entropy(logits.half(), labels, everything, 0.5).dtype == torch.float32
    with pytest.raises(ValueError, match="temperature"):
        robust_cross_entropy(logits, labels, everything, 0.0)


def random_pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return tuple(2 * torch.randn((2, *shape), generator=generator, dtype=torch.float64))


def voxels(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple(index) for index in torch.cartesian_prod(*map(torch.arange, (shape[0], *shape[2:]))).tolist()]


@pytest.mark.parametrize(
    ("percentile", "of_a", "of_b"), [(20, 0.343936, 0.108955), (50, 0.184214, 0.162636), (70, 0.200928, 0.205278)]
)
def test_entropy_filtered_hand_values(percentile: float, of_a: float, of_b: float) -> None:
    ignore, target = entropy_ignore_mask(PROBS_A, PROBS_B, percentile), fuse_labels(PROBS_A, PROBS_B)
    assert entropy_filtered_loss(PROBS_A.log(), target, ignore).item() == pytest.approx(of_a, abs=1e-6)
    assert entropy_filtered_loss(PROBS_B.log(), target, ignore).item() == pytest.approx(of_b, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 3, 4, 2)])
def test_entropy_filtered_against_a_loop(shape: tuple[int, ...]) -> None:
    (logits, _), generator = random_pair(*shape), torch.Generator().manual_seed(2)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    ignore, mask = torch.rand(2, shape[0], *shape[2:], generator=generator) > 0.5
    log_probs, total, kept = logits.log_softmax(1), 0.0, 0
    for b, *index in voxels(shape):
        if mask[(b, *index)] and not ignore[(b, *index)]:
            total -= log_probs[(b, target[(b, *index)], *index)].item()
            kept += 1
    found = entropy_filtered_loss(logits, target.masked_fill(ignore, 255), ignore, mask.unsqueeze(1))
    assert found.item() == pytest.approx(mask.sum().item() / kept * total / kept)


def test_entropy_filtered_gradient_and_nothing_kept() -> None:
    logits = random_pair(1, 3, 4, 4)[0].requires_grad_()
    ignore = torch.zeros(1, 4, 4, dtype=torch.bool)
    ignore[:, :2] = True
    target = torch.full((1, 4, 4), 2)
    entropy_filtered_loss(logits, target, ignore).backward()
    assert logits.grad[:, :, 2:].abs().min() > 0
    assert not logits.grad[:, :, :2].any()
    nothing = entropy_filtered_loss(logits, target, torch.ones_like(ignore))
    assert nothing.item() == 0.0
    assert not torch.autograd.grad(nothing, logits)[0].any()


@pytest.mark.parametrize(
    ("operator", "of_a", "of_b", "peer"),
    [("xor", 0.293450, 0.114250, 0.041600), ("or", 0.135080, 0.073500, 0.017940)],
)
def test_confident_disagreement_hand_values(operator: str, of_a: float, of_b: float, peer: float) -> None:
    found = confident_disagreement_mse(PROBS_A, PROBS_B, LABELS, 0.6, operator)
    assert [value.item() for value in found] == pytest.approx([of_a, of_b], abs=1e-6)
    found = confident_disagreement_mse(PROBS_A, PROBS_B, None, 0.6, operator)
    assert [value.item() for value in found] == pytest.approx([peer, peer], abs=1e-6)


def test_confident_disagreement_of_three_classes() -> None:
    a = torch.tensor([[0.7, 0.1, 0.2, 0.1], [0.2, 0.8, 0.1, 0.25], [0.1, 0.1, 0.7, 0.65]], dtype=torch.float64)
    b = torch.tensor([[0.2, 0.1, 0.7, 0.1], [0.7, 0.65, 0.2, 0.3], [0.1, 0.25, 0.1, 0.6]], dtype=torch.float64)
    found = confident_disagreement_mse(a.view(1, 3, 1, 4), b.view(1, 3, 1, 4), torch.tensor([[[1, 1, 2, 2]]]), 0.6)
    assert [value.item() for value in found] == pytest.approx([0.365, 0.45], abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 4, 4, 5), (2, 2, 3, 4, 2)])
@pytest.mark.parametrize("operator", ["xor", "or"])
@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_confident_disagreement_against_a_loop(shape: tuple[int, ...], operator: str, distance: str) -> None:
    a, b = (logits.softmax(1) for logits in random_pair(*shape))
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    mask = torch.rand(shape[0], 1, *shape[2:], generator=generator) > 0.3
    sums, count = [0.0, 0.0], 0
    for n, *index in voxels(shape):
        pair = [probs[(n, slice(None), *index)].tolist() for probs in (a, b)]
        for c in range(1, shape[1]):
            sure = [p[c] == max(p) and p[c] >= 0.6 for p in pair]
            if not mask[(n, 0, *index)] or not (sure[0] != sure[1] if operator == "xor" else any(sure)):
                continue
            count += 1
            y = float(target[(n, *index)] == c)
            for i, p in enumerate(pair):
                sums[i] += (p[c] - y) ** 2 if distance == "mse" else -math.log(p[c] if y else 1 - p[c])
    found = confident_disagreement_mse(a, b, target, 0.6, operator, mask, distance)
    assert count > 0
    assert [value.item() for value in found] == pytest.approx([value / count for value in sums])


@pytest.mark.parametrize("target", [LABELS, None])
def test_confident_disagreement_gradient_stays_with_its_prediction(target: torch.Tensor | None) -> None:
    a, b = PROBS_A.clone().requires_grad_(), PROBS_B.clone().requires_grad_()
    for value, own, other in zip(confident_disagreement_mse(a, b, target, 0.6), (a, b), (b, a), strict=True):
        gradients = torch.autograd.grad(value, (own, other), allow_unused=True)
        assert gradients[0].abs().sum() > 0
        assert gradients[1] is None


def test_confident_disagreement_without_any() -> None:
    a = PROBS_A.clone().requires_grad_()
    nothing = confident_disagreement_mse(a, a, LABELS, 0.6)[0]
    assert nothing.item() == 0.0
    assert not torch.autograd.grad(nothing, a)[0].any()
    certain = torch.tensor([[[0.0]], [[1.0]]])[None].requires_grad_()
    wrong = confident_disagreement_mse(certain, 1 - certain, torch.zeros(1, 1, 1).long(), 0.6, distance="kl")[0]
    wrong.backward()
    assert wrong.item() == pytest.approx(-math.log(1e-7), abs=0.01)
    assert certain.grad.isfinite().all()


@pytest.mark.parametrize("options", [{"operator": "and"}, {"distance": "l1"}])
def test_confident_disagreement_unknown_options(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="operator must be"):
        confident_disagreement_mse(PROBS_A, PROBS_B, LABELS, 0.6, **options)


LOGITS_A = torch.tensor([[1, 0.2, -0.5], [-1, 0.4, 1.5]], dtype=torch.float64).view(1, 2, 1, 3)
LOGITS_B = torch.tensor([[0.5, 0, -1], [-0.5, 1, 0]], dtype=torch.float64).view(1, 2, 1, 3)


@pytest.mark.parametrize(
    ("student", "peer", "hard", "expected"),
    [
        (LOGITS_A, LOGITS_B, False, 0.495921),
        (LOGITS_A, LOGITS_B, True, 0.342174),
        (LOGITS_B, LOGITS_A, False, 0.497257),
        (LOGITS_B, LOGITS_A, True, 0.361971),
    ],
)
def test_kl_weighted_hand_values(student: torch.Tensor, peer: torch.Tensor, hard: bool, expected: float) -> None:
    assert kl_weighted_cross_entropy(student, peer, 0.5, hard=hard).item() == pytest.approx(expected, abs=1e-6)


def test_kl_weighted_gradient() -> None:
    a, b = LOGITS_A.clone().requires_grad_(), LOGITS_B.clone().requires_grad_()
    loss = kl_weighted_cross_entropy(a, b, 0.5)
    to_a, to_b = torch.autograd.grad(loss, (a, b), allow_unused=True)
    assert to_a[0, 1].flatten().tolist() == pytest.approx([-0.033124, -0.128257, 0.033124], abs=1e-6)
    assert to_b is None


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 2, 3), (1, 4, 2, 3, 2)])
def test_kl_weighted_gradient_against_differences(shape: tuple[int, ...], hard: bool) -> None:
    student, peer = random_pair(*shape)
    mask = torch.rand(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(5)) > 0.3
    for given in (mask, mask[:1], None):
        assert torch.autograd.gradcheck(
            lambda z, given=given: kl_weighted_cross_entropy(z, peer.double(), 0.7, given, hard),
            student.double().requires_grad_(),
        )


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 3, 4, 2)])
@pytest.mark.parametrize("mask", ["none", "some", "shared", "empty"])
def test_kl_weighted_is_the_reference(shape: tuple[int, ...], hard: bool, mask: str) -> None:
    student, peer = random_pair(*shape)
    student = student.clone().requires_grad_()
    some = torch.rand(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(6)) > 0.4
    given = {"none": None, "some": some, "shared": some[:1], "empty": torch.zeros_like(some)}[mask]
    found = kl_weighted_cross_entropy(student, peer, 0.7, given, hard)
    expected = kl_weighted_cross_entropy_reference(student, peer, 0.7, given, hard)
    torch.testing.assert_close(found, expected)
    gradient, wanted = (torch.autograd.grad(2.5 * value, student)[0] for value in (found, expected))
    torch.testing.assert_close(gradient, wanted)
    assert bool(gradient.any()) == (mask != "empty")


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 3, 4, 2)])
def test_kl_weighted_against_a_loop(shape: tuple[int, ...]) -> None:
    student, peer = random_pair(*shape)
    mask = torch.rand(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(4)) > 0.4
    weighted, divergences = [], []
    for n, *index in voxels(shape):
        if mask[(n, 0, *index)]:
            s, o = (z[(n, slice(None), *index)] for z in (student, peer))
            p, q, target = s.softmax(0), o.softmax(0), (o / 0.7).softmax(0)
            divergences.append(sum(b * (b.log() - a.log()) for a, b in zip(p, q, strict=True)).item())
            cross_entropy = -sum(t * a.log() for t, a in zip(target, p, strict=True)).item()
            weighted.append(math.exp(-divergences[-1]) * cross_entropy)
    expected = (sum(weighted) + sum(divergences)) / len(weighted)
    assert kl_weighted_cross_entropy(student, peer, 0.7, mask).item() == pytest.approx(expected)
    assert kl_weighted_cross_entropy(student, peer, 0.7, torch.zeros_like(mask)).item() == 0.0


def test_kl_weighted_temperature_matters_unless_the_target_is_hard() -> None:
    soft = [kl_weighted_cross_entropy(LOGITS_A, LOGITS_B, t).item() for t in (0.5, 0.05)]
    hard = [kl_weighted_cross_entropy(LOGITS_A, LOGITS_B, t, hard=True).item() for t in (0.5, 0.05)]
    assert abs(soft[0] - soft[1]) > 0.05
    assert hard[0] == hard[1]
    with pytest.raises(ValueError, match="temperature must be"):
        kl_weighted_cross_entropy(LOGITS_A, LOGITS_B, 0.0)


def test_cosine_distance_hand_value_and_gradients() -> None:
    a, b = (z.softmax(1).requires_grad_() for z in (LOGITS_A, LOGITS_B))
    loss = cosine_distance(a, b)
    assert loss.item() == pytest.approx(0.034149, abs=1e-6)
    assert cosine_distance(a, a).item() == pytest.approx(0.0, abs=1e-12)
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss, (a, b)))
    assert cosine_distance(a, b, torch.zeros(1, 1, 1, 3)).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_in_half_precision_are_taken_to_single(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = ((3 * torch.randn(2, 2, 48, 48, 48, generator=generator)).softmax(1).to(dtype) for _ in range(2))
    target = torch.randint(2, (2, 48, 48, 48), generator=generator)  # enough voxels for a sum beyond 65,504

    def losses(p: torch.Tensor, q: torch.Tensor) -> list[torch.Tensor]:
        errors = [e for op in ("xor", "or") for e in confident_disagreement_mse(p, q, target, 0.5, op)]
        return [*errors, cosine_distance(p, q), probability_mse(p, q)]

    for found, expected in zip(losses(a, b), losses(a.float(), b.float()), strict=True):
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("half", [False, True])
def test_losses_of_saturated_predictions_are_finite(half: bool) -> None:
    z = 50 * torch.tensor([[[1.0, -1.0, 1.0]], [[-1.0, 1.0, 1.0]]])[None]
    z = (z.half() if half else z).requires_grad_()
    target, ignore = torch.tensor([[[1, 0, 1]]]), torch.tensor([[[False, False, True]]])
    probs, other = z.float().softmax(1), (-z.detach().float()).softmax(1)
    losses = [
        entropy_filtered_loss(z, target, ignore),
        kl_weighted_cross_entropy(z, -z, 0.5),
        *confident_disagreement_mse(probs, other, target, 0.6),
        cosine_distance(probs, other),
    ]
    for loss in losses:
        assert loss.dtype == torch.float32
        assert loss.isfinite()
    gradient = torch.autograd.grad(sum(losses), z)[0]
    assert gradient.isfinite().all()


def test_relative_l2_by_hand() -> None:
    z = torch.tensor([[1.0, -1.0], [0.5, 0.5]], dtype=torch.float64).view(1, 2, 2).requires_grad_()
    target = torch.tensor([[2.0, -1.0], [0.0, 1.0]], dtype=torch.float64).view(1, 2, 2)
    loss = relative_l2(z, target)
    assert loss.item() == pytest.approx(0.25, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.flatten().tolist() == pytest.approx([-1 / 3, 0, 1 / 6, -1 / 6], abs=1e-6)


@pytest.mark.parametrize("size", [(4, 5), (3, 2, 4)])
def test_relative_l2_is_a_mean_of_ratios(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    z, target = (torch.randn(3, 2, *size, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(3, 1, *size, generator=generator) > 0.4
    ratios = [
        sum(((z[b, c] - target[b, c]) ** 2)[mask[b, 0]].sum().item() for c in range(2))
        / sum((target[b, c] ** 2)[mask[b, 0]].sum().item() for c in range(2))
        for b in range(3)
    ]
    assert relative_l2(z, target, mask).item() == pytest.approx(sum(ratios) / 3, rel=1e-6)
    assert relative_l2(z, target).item() == pytest.approx(relative_l2(100 * z, 100 * target).item(), rel=1e-6)
    assert relative_l2(z, z).item() == 0
    assert relative_l2(z, target, torch.zeros_like(mask)).item() == 0
    constant = target.clone().requires_grad_()
    relative_l2(z.requires_grad_(), constant).backward()
    assert z.grad is not None
    assert constant.grad is None


def test_soft_dice_distillation_by_hand() -> None:
    p, q = (
        torch.stack([1 - x, x])[None]
        for x in torch.tensor([[0.9, 0.2, 0.6], [0.8, 0.3, 0.3]], dtype=torch.float64).view(2, 3, 1)
    )
    losses = [0.0601093, 0.0541872]
    by_class = [soft_dice_distillation(p[:, c : c + 1], q[:, c : c + 1]).item() for c in range(2)]
    assert sorted(by_class) == pytest.approx(sorted(losses), abs=1e-6)
    assert soft_dice_distillation(p, q).item() == pytest.approx(0.0571482, abs=1e-6)


@pytest.mark.parametrize("size", [(4, 5), (3, 2, 4)])
def test_soft_dice_distillation_draws_to_the_teacher(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *size, generator=generator, requires_grad=True)
    q = torch.randn(2, 3, *size, generator=generator).softmax(1).requires_grad_()
    assert soft_dice_distillation(q, q).item() == pytest.approx(0, abs=1e-6)
    mask = torch.zeros(2, 1, *size)
    assert soft_dice_distillation(logits.softmax(1), q, mask).item() == 0
    mask[:, :, 0] = 1
    kept = soft_dice_distillation(logits[:, :, :1].softmax(1), q[:, :, :1])
    torch.testing.assert_close(soft_dice_distillation(logits.softmax(1), q, mask), kept)
    (gradient,) = torch.autograd.grad(soft_dice_distillation(logits.softmax(1), q), logits)
    closer = (logits - gradient / gradient.norm()).softmax(1)
    assert soft_dice_distillation(closer, q) < soft_dice_distillation(logits.softmax(1), q)
    assert q.grad is None
