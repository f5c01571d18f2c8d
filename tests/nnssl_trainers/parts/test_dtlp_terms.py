from __future__ import annotations

from typing import Any

import pytest
import torch

from nnssl.ingredients.consistency import relative_l2, soft_dice_distillation
from nnssl.ingredients.thresholds import DifficultyWeights
from nnssl_trainers.methods.dtlp import DTLPConfig
from nnssl_trainers.parts.dice_ce_loss import DiceCELoss
from nnssl_trainers.parts.dtlp_branches import FirstTeacher
from nnssl_trainers.parts.dtlp_lessons import Lesson
from nnssl_trainers.parts.dtlp_terms import DTLPTerms
from nnssl_trainers.parts.masked_mixing import LabelledPatches
from tests.nnssl_trainers.parts.dtlp_cases import small_branches


def terms_of(regions: bool = False, dim: int = 2, **config: Any) -> DTLPTerms:
    _, branches = small_branches(dim, **config)
    settings = DTLPConfig(**{"correlation_weight": 1.0, **config})
    mode: Any = "default" if settings.difficulty == "off" else settings.difficulty
    return DTLPTerms(
        settings, branches, DiceCELoss(regions=regions), DifficultyWeights(2 if regions else 3, mode=mode), regions
    )


def patches(problems: int = 1, classes: int = 3) -> LabelledPatches:
    torch.manual_seed(1)
    labels, mask = torch.randint(classes, (2, problems, 8, 8)), torch.rand(2, 1, 8, 8) > 0.2
    return LabelledPatches(torch.randn(2, 1, 8, 8), labels * mask, mask)


def test_signed_maps() -> None:
    known = patches()
    maps = terms_of().signed_maps(known, 3)
    assert maps.shape == (2, 3, 8, 8)
    assert maps.dtype == torch.float32
    assert torch.equal(maps.sum(1, keepdim=True), torch.where(known.mask, -1.0, -3.0))
    assert torch.equal(maps.argmax(1, keepdim=True)[known.mask], known.labels[known.mask])
    of_regions = patches(3, 2)
    signed = terms_of(regions=True).signed_maps(of_regions, 3)
    assert torch.equal(signed, torch.where((of_regions.labels == 1) & of_regions.mask, 1.0, -1.0))


def test_weights_follow_the_diffusion_decoder() -> None:
    known = patches()
    terms = terms_of()
    perfect = 9.0 * (known.labels == torch.arange(3).view(3, 1, 1))
    wrong = perfect.clone()
    wrong[:, 1] = -9.0  # class 1 is never predicted
    weights = terms.class_weights(wrong, known)
    expected = DifficultyWeights(3).update(torch.tensor([dice_of(wrong.argmax(1), known, label) for label in range(3)]))
    torch.testing.assert_close(weights, expected)
    assert weights.argmax() == 1
    assert terms_of(difficulty="off").class_weights(wrong, known) is None


def dice_of(found: torch.Tensor, known: LabelledPatches, label: int) -> float:
    ours, truth = ((x == label) & known.mask[:, 0] for x in (found, known.labels[:, 0]))
    return 2 * (ours & truth).sum().item() / (ours.sum() + truth.sum()).item()


def test_an_absent_class_fakes_progress_in_the_code_alone() -> None:
    known = patches(classes=2)
    sure = 9.0 * (known.labels == torch.arange(3).view(3, 1, 1))
    absent = [terms_of(difficulty=mode).class_weights(sure, known)[2].item() for mode in ("default", "adnd")]
    assert absent[0] == pytest.approx(3.0)  # its state has not changed
    code = DifficultyWeights(3, mode="adnd")
    assert absent[1] == pytest.approx(code.update(torch.tensor([1.0, 1.0, 0.5]))[2].item())


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("source", ["raw", "clamped"])
def test_distillation_from_both_decoders(source: str, regions: bool) -> None:
    z, psi, raw = (3 * torch.randn(2, 3, 8, 8) for _ in range(3))
    scan = torch.rand(2, 1, 8, 8) > 0.3
    lesson = Lesson(first=FirstTeacher(psi, raw, raw.clamp(-1, 1)))

    def probs(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros_like(x), x], 2).flatten(0, 1).softmax(1) if regions else x.softmax(1)

    mask = scan.repeat_interleave(3, 0) if regions else scan
    sample = raw if source == "raw" else raw.clamp(-1, 1)
    expected = soft_dice_distillation(probs(z), probs(sample), mask)
    expected = expected + soft_dice_distillation(probs(z), probs(psi), mask)
    torch.testing.assert_close(terms_of(regions, kd_source=source).distillation(z, lesson, scan), expected)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("space", ["logits", "probs", "features"])
def test_reconstruction_in_each_space(space: str, regions: bool) -> None:
    z, target = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    deep, deep_target, scan = torch.randn(2, 8, 2, 2), torch.randn(2, 8, 2, 2), torch.rand(2, 1, 8, 8) > 0.3
    activation = torch.sigmoid if regions else lambda x: x.softmax(1)
    expected = {
        "logits": relative_l2(z, target, scan),
        "probs": relative_l2(activation(z), activation(target), scan),
        "features": relative_l2(deep, deep_target),
    }[space]
    lesson = Lesson(logits=target, features=deep_target)
    torch.testing.assert_close(terms_of(regions, rec_space=space).reconstruction(z, deep, lesson, scan), expected)


@pytest.mark.parametrize("detach", [True, False])
def test_propagation_trains_the_decoder_on_request(detach: bool) -> None:
    terms = terms_of(correlation_detach=detach)
    logits, known = torch.randn(2, 3, 8, 8, requires_grad=True), patches()
    features = [torch.randn(2, c, n, n, requires_grad=True) for c, n in ((4, 8), (8, 4), (8, 2))]
    terms.correlation(features, logits, known).backward()
    assert (logits.grad is None) == detach
    assert features[2].grad.abs().sum() > 0
