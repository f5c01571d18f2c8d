from __future__ import annotations

from typing import Any

import pytest
import torch

from nnssl.ingredients.perturb import gaussian_blur, gumbel_softmax
from nnssl.ingredients.pseudo_labels import entropy_weighted_ensemble
from nnssl_trainers.methods.dtlp import DTLPConfig
from nnssl_trainers.parts.dtlp_branches import FirstTeacher
from nnssl_trainers.parts.dtlp_lessons import Teachers
from tests.nnssl_trainers.parts.dtlp_cases import small_branches, small_network

ALL = {"mix", "mic", "kd", "rec", "correlation"}


def teachers_of(dim: int = 2, regions: bool = False, **config: Any) -> Teachers:
    network, branches = small_branches(dim, **config)
    settings = DTLPConfig(**{"correlation_weight": 1.0, "ddim_steps": 3, **config})
    return Teachers(settings, branches, network, small_network(dim), regions)


def images(dim: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 1, *[8] * dim), torch.randn(3, 1, *[8] * dim)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("which", ["both", "first", "second"])
def test_pseudo_labels_are_the_equations(which: str, regions: bool) -> None:
    teachers = teachers_of(regions=regions, teachers=which)
    first = FirstTeacher(torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.rand(2, 3, 8, 8) * 2 - 1)
    second = 3 * torch.randn(2, 3, 8, 8)

    def classes(z: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros_like(z), z], 2).flatten(0, 1) if regions else z

    torch.manual_seed(5)
    p1 = 0.5 * (gaussian_blur(gumbel_softmax(classes(first.clamped), 1.0)) + classes(first.psi).softmax(1))
    p2 = classes(second).softmax(1)
    probs = {"both": entropy_weighted_ensemble(p1, p2)[0], "first": p1, "second": p2}[which]
    torch.manual_seed(5)
    found = teachers.pseudo_labels(first, second, 2)
    assert found.shape == (2, 3 if regions else 1, 8, 8)
    assert torch.equal(found.flatten(0, 1), probs.argmax(1))


@pytest.mark.parametrize(
    ("terms", "which", "predicts"),
    [
        (ALL, "both", (True, True)),
        ({"mix"}, "both", (True, True)),
        ({"mix"}, "first", (True, False)),
        ({"mix"}, "second", (False, True)),
        ({"kd"}, "both", (True, False)),
        ({"rec"}, "both", (False, True)),
        (set(), "both", (False, False)),
    ],
)
def test_teachers_predict_only_what_the_terms_need(
    terms: set[str], which: str, predicts: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers, calls = teachers_of(teachers=which), []
    teach = teachers.branches.teach
    monkeypatch.setattr(teachers.branches, "teach", lambda *args: calls.append("first") or teach(*args))
    teachers.average.encoder.register_forward_hook(lambda *_: calls.append("second"))
    lesson = teachers.teach(*images(), terms)
    assert ("first" in calls, "second" in calls) == predicts
    assert (lesson.first is not None) == predicts[0]
    assert (lesson.labels is not None) == bool(terms - {"kd", "rec"})
    assert (lesson.logits is not None) == ("rec" in terms)


@pytest.mark.parametrize("dim", [2, 3])
def test_each_prediction_is_of_its_patches(dim: int) -> None:
    teachers, (labelled, unlabelled) = teachers_of(dim), images(dim)
    teachers.average.eval()
    torch.manual_seed(1)
    lesson = teachers.teach(labelled, unlabelled, ALL)
    assert lesson.labels.shape == (3, 1, *[8] * dim)
    assert lesson.labels_l is None
    assert [len(x) for x in (lesson.first.psi, lesson.first.raw, lesson.first.clamped)] == [3, 3, 3]
    torch.testing.assert_close(lesson.logits, teachers.average(torch.cat([labelled, unlabelled]))[0])
    assert lesson.features.shape[:2] == (5, 8)
    assert not lesson.logits.requires_grad
    both = teachers_of(dim, cutmix_labels="teacher").teach(labelled, unlabelled, ALL)
    assert both.labels.shape[0] == len(both.first.psi) == 3
    assert both.labels_l.shape == (2, 1, *[8] * dim)
