from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnssl.errors import UsageError
from nnssl.ingredients.consistency import (
    confident_disagreement_mse,
    entropy_filtered_loss,
    kl_weighted_cross_entropy,
)
from nnssl.ingredients.contrastive import prototype_contrast
from nnssl.ingredients.pseudo_labels import cross_pseudo_labels, fuse_labels
from nnssl.ingredients.uncertainty import entropy_ignore_mask
from nnssl.networks.cce_pair import CCEPair
from nnssl.system.files import read_json
from nnssl_trainers.methods import cce

SMALL = {"network": "plan", "student2": "vnet", "rampup_share": 0.0}


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes an initialised CCETrainer without dropout, with one batch of iteration 3 of 8."""

    def make(dim: int = 2, iteration: int = 3, num_iterations: int = 8, **config):
        trainer = make_trainer("CCETrainer", dim, num_iterations=num_iterations, config={**SMALL, **config})
        trainer.initialize()
        trainer.set_training_mode()
        for student in trainer.students:
            for module in student.modules():
                if isinstance(module, nn.Dropout2d | nn.Dropout3d):
                    module.p = 0.0
        batch = trainer._move_to_device(next(trainer.get_dataloaders()[0]))
        return trainer, dataclasses.replace(batch, iteration=iteration)

    return make


def gradients(network: nn.Module) -> float:
    return sum(p.grad.abs().sum().item() for p in network.parameters() if p.grad is not None)


def students_moved_by(trainer, term: Tensor) -> list[bool]:
    for network in trainer.students:
        network.zero_grad()
    term.backward(retain_graph=True)
    return [gradients(network) > 0 for network in trainer.students]


def on_logits(trainer, a: Tensor, b: Tensor, batch):
    """Make the students return these logits (2 labelled, 2 unlabelled patches); features are the logits."""

    class Given(nn.Module):
        def __init__(self, logits: Tensor) -> None:
            super().__init__()
            self.logits = logits.requires_grad_()

        def forward(self, image: Tensor) -> Tensor:
            return self.logits

    class Kept:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

        def take(self, size: torch.Size) -> Tensor:
            return self.logits

    trainer.network, trainer.network2 = Given(a), Given(b)
    trainer.features = [Kept(a), Kept(b)] if trainer.features else []
    trainer.supervised_loss = lambda outputs, _: outputs[0].square().mean()
    return trainer.training_losses(batch)


@pytest.mark.parametrize("dim", [2, 3])
def test_each_term_moves_its_own_student_only(dim: int, ready) -> None:
    trainer, batch = ready(dim, cps_threshold=0.0)  # every voxel counts, however unsure the new networks are
    terms = trainer.training_losses(batch)
    assert list(terms) == [
        "supervised_1",
        "supervised_2",
        "cps_1",
        "cps_2",
        "efs_1",
        "efs_2",
        "ue_1",
        "ue_2",
        "contrast",
    ]
    for name, term in terms.items():
        moved = students_moved_by(trainer, term)
        if name == "contrast":
            assert sum(moved) == 1
        else:
            assert moved == [name.endswith("1"), name.endswith("2")]


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_step_is_equations_1_to_20(dim: int, classes: int, ready) -> None:
    trainer, batch = ready(dim)
    shape = (4, classes, *batch.image_l.shape[2:])
    generator = torch.Generator().manual_seed(0)
    a, b = 3 * torch.randn((2, *shape), generator=generator)
    y = torch.randint(classes, (2, 1, *shape[2:]), generator=generator)
    mask = torch.rand(2, 1, *shape[2:], generator=generator) > 0.2
    batch = dataclasses.replace(batch, target_l=y.float(), mask_u=mask)
    torch.manual_seed(4)
    terms = on_logits(trainer, a, b, batch)
    p, q = a.softmax(1), b.softmax(1)
    cr = confident_disagreement_mse(p[:2], q[:2], y[:, 0], 0.6)
    ignore, fused = entropy_ignore_mask(p[2:], q[2:], 70, mask, by_class=True), fuse_labels(p[2:], q[2:])
    for i, (z, peer, r) in enumerate(((a, b, q), (b, a, p)), start=1):
        assert terms[f"supervised_{i}"].item() == pytest.approx((z[:2].square().mean() + 0.5 * cr[i - 1]).item())
        labels = cross_pseudo_labels(r[2:], 0.6, "background" if classes == 2 else "ignore")
        counted = mask[:, 0] & (labels >= 0)
        expected = nn.functional.cross_entropy(z[2:], labels.masked_fill(~counted, -1), ignore_index=-1)
        assert terms[f"cps_{i}"].item() == pytest.approx(expected.item(), rel=1e-5)
        assert terms[f"efs_{i}"].item() == pytest.approx(entropy_filtered_loss(z[2:], fused, ignore, mask).item())
        assert terms[f"ue_{i}"].item() == pytest.approx(kl_weighted_cross_entropy(z[2:], peer[2:], 0.5, mask).item())
    torch.manual_seed(4)
    contrasts = [
        prototype_contrast(z[2:], own[2:], other[2:], 70, sample_fraction=0.01, mask=mask, by_class=True)
        for z, own, other in ((a, p, q), (b, q, p))
    ]
    lost = [1 - dice_of(r[:2], y[:, 0]) for r in (p, q)]
    ramp = 0.1 * torch.exp(torch.tensor(-5 * (1 - 3 / 8) ** 2))
    assert terms["contrast"].item() == pytest.approx((ramp * contrasts[0 if lost[0] > lost[1] else 1]).item(), rel=1e-5)


def dice_of(probs: Tensor, labels: Tensor) -> float:
    shares = []
    for c in range(1, probs.shape[1]):
        p, y = probs[:, c], (labels == c).float()
        shares.append((2 * (p * y).sum() / (p.square().sum() + y.sum())).item())
    return sum(shares) / len(shares)


@pytest.mark.parametrize(("better", "expected"), [(0, [False, True]), (1, [True, False]), (None, [False, True])])
def test_the_contrast_serves_the_loser_and_on_a_tie_student_2(better, expected, ready) -> None:
    trainer, batch = ready(2)
    z = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    truth = nn.functional.one_hot(batch.target_l[0][:, 0].long(), 3).movedim(-1, 1)
    pair = [z.clone(), z.clone()]
    if better is not None:
        pair[better][:2] += 3 * truth
    terms = on_logits(trainer, *pair, batch)
    found = torch.autograd.grad(terms["contrast"], [trainer.network.logits, trainer.network2.logits])
    assert [bool(gradient.any()) for gradient in found] == expected


def test_losses_of_two_classes_are_those_of_three_with_an_impossible_one(ready) -> None:
    trainer, batch = ready(2, cps_threshold=0.0)
    generator = torch.Generator().manual_seed(2)
    a, b = 2 * torch.randn((2, 4, 2, 16, 16), generator=generator)
    batch = dataclasses.replace(batch, target_l=torch.randint(2, (2, 1, 16, 16), generator=generator).float())
    two = on_logits(trainer, a, b, batch)
    impossible = torch.full((4, 1, 16, 16), -200.0)
    three = on_logits(trainer, *(torch.cat([z, impossible], 1).detach() for z in (a, b)), batch)
    for name in ("cps_1", "cps_2", "efs_1", "efs_2", "ue_1", "ue_2"):
        assert three[name].item() == pytest.approx(two[name].item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["large", "opposite", "background", "certain", "all padding"])
@pytest.mark.parametrize("classes", [2, 3])
def test_finite_at_the_extremes(kind: str, classes: int, ready) -> None:
    trainer, batch = ready(2)
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(classes, (4, 16, 16), generator=generator)
    if kind == "background":
        labels = torch.zeros_like(labels)
    size = 500.0 if kind == "certain" else 50.0
    z = size * (2.0 * nn.functional.one_hot(labels, classes).movedim(-1, 1) - 1)
    batch = dataclasses.replace(batch, target_l=torch.zeros(2, 1, 16, 16))
    if kind == "all padding":
        batch = dataclasses.replace(batch, mask_u=torch.zeros_like(batch.mask_u))
    terms = on_logits(trainer, z.clone(), -z if kind == "opposite" else z.clone(), batch)
    assert all(term.isfinite() for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert all(student.logits.grad.isfinite().all() for student in trainer.students)


def test_labels_enter_by_the_labelled_patches_alone(ready) -> None:
    trainer, batch = ready(2)
    states = [{key: value.clone() for key, value in s.state_dict().items()} for s in trainer.students]
    losses = []
    for target in (batch.target_l, [torch.zeros_like(t) for t in batch.target_l]):
        for student, state in zip(trainer.students, states, strict=True):
            student.load_state_dict(state)
        torch.manual_seed(0)
        losses.append(trainer.training_losses(dataclasses.replace(batch, target_l=target)))
    first, second = losses
    for name, term in first.items():
        if name.startswith(("cps", "efs", "ue")):
            assert torch.equal(term, second[name])
    assert not torch.equal(first["supervised_1"], second["supervised_1"])


def test_padding_teaches_nothing(ready) -> None:
    trainer, batch = ready(2, ue_weight=0.0)
    mask = torch.ones_like(batch.mask_u)
    mask[..., :5] = False
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn((2, 4, 3, 16, 16), generator=generator)
    terms = on_logits(trainer, a, b, dataclasses.replace(batch, mask_u=mask))
    names = ("cps_1", "efs_1", "cps_2", "efs_2", "contrast")
    for gradient in torch.autograd.grad(sum(terms[name] for name in names), [a, b]):
        assert not gradient[2:, :, :, :5].any()
        assert gradient[2:, :, :, 5:].any()


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_the_presets_filter_by_one_percentile(preset: str, ready) -> None:
    config = ready(2, preset=preset, network="plan", augmentation="nnunet")[0].config
    assert not config.entropy_by_class
    assert config.ue_scope == {"paper": "unlabelled", "code": "all"}[preset]  # eq. 3, and the code


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("preset", ["default", "code"])
def test_the_uncertainty_loss_on_all_patches(preset: str, weight: float, ready) -> None:
    trainer, batch = ready(2, preset=preset, ue_scope="all", unlabelled_weight=weight)
    generator = torch.Generator().manual_seed(9)
    a, b = 2 * torch.randn((2, 4, 3, 16, 16), generator=generator)
    mask = torch.rand(2, 1, 16, 16, generator=generator) > 0.3
    terms = on_logits(trainer, a, b, dataclasses.replace(batch, mask_u=mask))
    counts = torch.cat([torch.ones_like(mask), mask])
    factors = torch.tensor([1.0, 1.0, weight, weight]).view(4, 1, 1, 1).expand_as(counts)[counts]
    log_p, log_q = a.log_softmax(1), b.log_softmax(1)
    divergence = (log_q.exp() * (log_q - log_p)).sum(1, keepdim=True)
    target = nn.functional.one_hot(b.argmax(1), 3).movedim(-1, 1) if preset == "code" else (b / 0.5).softmax(1)
    each = (-divergence).exp() * -(target * log_p).sum(1, keepdim=True) + divergence
    assert terms["ue_1"].item() == pytest.approx((factors * each[counts]).sum().item() / counts.sum().item(), rel=1e-4)
    if preset == "code":
        distance = 1 - nn.functional.cosine_similarity(a.softmax(1), b.softmax(1), dim=1).unsqueeze(1)
        expected = (factors * distance[counts]).sum().item() / counts.sum().item()
        assert terms["cosine"].item() == pytest.approx(expected, rel=1e-4)


def test_the_optimisers_lose_their_momentum_when_pretraining_ends(ready) -> None:
    trainer, _ = ready(2, pretrain_share=0.25)  # 2 of 8 iterations
    stream = trainer.get_dataloaders()[0]
    for step in range(1, 5):
        batch = next(stream)
        trainer.train_step(batch if "labelled" in batch else next(stream))
        assert [bool(optimizer.state) for _, optimizer in trainer.trained] == [step != 2] * 2


def test_the_preset_of_the_code(ready) -> None:
    trainer, batch = ready(2, preset="code")
    terms = trainer.training_losses(batch)
    assert list(terms) == ["supervised_1", "supervised_2", "ue_1", "cosine"]
    assert students_moved_by(trainer, terms["ue_1"]) == [True, False]
    assert students_moved_by(trainer, terms["cosine"]) == [True, True]


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_supervision_as_in_the_paper(preset: str, ready) -> None:
    trainer, batch = ready(2, preset=preset, network="plan")
    generator = torch.Generator().manual_seed(6)
    a, b = torch.randn((2, 4, 3, 16, 16), generator=generator)
    terms = on_logits(trainer, a, b, batch)
    y = batch.target_l[0][:, 0].long()
    p, q = a[:2].softmax(1), b[:2].softmax(1)
    cr = confident_disagreement_mse(p, q, y, 0.6)
    for i, (z, r) in enumerate(((a, p), (b, q))):
        expected = nn.functional.cross_entropy(z[:2], y) + 1 - dice_of(r, y) + 0.5 * cr[i]
        assert terms[f"supervised_{i + 1}"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_disagreement_the_supervised_term_is_nnunets(ready) -> None:
    trainer, batch = ready(2, disagreement_weight=0.0, iteration=0, pretrain_share=0.5)
    terms = trainer.training_losses(batch)
    assert list(terms) == ["supervised_1", "supervised_2"]
    assert torch.equal(terms["supervised_1"], trainer.loss(trainer.network(batch.image_l), batch.target_l))
    torch.testing.assert_close(terms["supervised_2"], trainer.loss(trainer.network2(batch.image_l), batch.target_l))


ABLATIONS = [
    ({"cps_weight": 0.0}, {"cps"}),
    ({"efs_weight": 0.0}, {"efs"}),
    ({"ue_weight": 0.0}, {"ue"}),
    ({"contrast_weight": 0.0}, {"contrast"}),
    ({"efs_weight": 0.0, "ue_weight": 0.0, "contrast_weight": 0.0}, {"efs", "ue", "contrast"}),
    ({"disagreement_weight": 0.0}, set()),
    ({"disagreement_distance": "kl"}, set()),
    ({"entropy_percentile": 10.0}, set()),
    ({"prototype_percentile": 40.0}, set()),
    ({"entropy_by_class": False}, set()),
    ({"ue_scope": "all"}, set()),
    ({"prototype_term": "off"}, set()),
    ({"prototype_term": "repel"}, set()),
    ({"rampup_share": 1.0}, set()),
]


@pytest.mark.parametrize(("config", "missing"), ABLATIONS, ids=lambda value: str(sorted(value) or value))
def test_every_ablation_trains(config, missing, ready) -> None:
    trainer, batch = ready(2, **config)
    before = [torch.cat([p.detach().flatten() for p in s.parameters()]) for s in trainer.students]
    terms = trainer.training_losses(batch)
    found = {name.partition("_")[0] for name in terms}
    assert found == {"supervised", "cps", "efs", "ue", "contrast"} - missing
    assert all(torch.isfinite(term) for term in terms.values())
    trainer._optimise(torch.stack(list(terms.values())).sum())
    after = [torch.cat([p.detach().flatten() for p in s.parameters()]) for s in trainer.students]
    assert all(not torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"disagreement_distance": "kl"}, ["supervised_1", "supervised_2"]),
        ({"confidence": 0.4}, ["supervised_1", "supervised_2"]),
        ({"cps_threshold": 0.9}, ["cps_1", "cps_2"]),
        ({"ue_temperature": 0.1}, ["ue_1", "ue_2"]),
        ({"entropy_percentile": 40.0}, ["efs_1", "efs_2"]),
        ({"prototype_percentile": 40.0}, ["contrast"]),
        ({"entropy_by_class": False}, ["contrast", "efs_1", "efs_2"]),
        ({"ue_scope": "all"}, ["ue_1", "ue_2"]),
        (
            {"unlabelled_weight": 0.5},
            ["contrast", "cps_1", "cps_2", "efs_1", "efs_2", "ue_1", "ue_2"],
        ),
        ({"prototype_term": "off"}, ["contrast"]),
        ({"rampup_share": 1.0}, ["cps_1", "cps_2", "efs_1", "efs_2", "ue_1", "ue_2"]),
    ],
    ids=str,
)
def test_a_setting_changes_its_terms_only(config, changed, ready, monkeypatch) -> None:
    monkeypatch.setattr(cce, "DRAWN_SHARE", None)  # all uncertain voxels, so that nothing is drawn
    results = []
    pair = 2 * torch.randn((2, 4, 3, 16, 16), generator=torch.Generator().manual_seed(7))
    for settings in ({}, config):
        trainer, batch = ready(2, **settings)
        results.append(on_logits(trainer, *pair.clone(), batch))
    first, second = results
    assert sorted(name for name, term in first.items() if not torch.equal(term, second[name])) == changed


def test_weights_over_the_run(ready, monkeypatch) -> None:
    trainer, batch = ready(2, num_iterations=6000, pretrain_share=0.0, rampup_share=0.5)
    monkeypatch.setattr(cce, "prototype_contrast", lambda z, *_, **__: z.mean() * 0 + 1)
    pair = torch.randn((2, 4, 3, 16, 16), generator=torch.Generator().manual_seed(8))
    found, taught = [], []
    for iteration in (0, 1500, 3000, 4500, 6000):
        terms = on_logits(trainer, *pair.clone(), dataclasses.replace(batch, iteration=iteration))
        found.append(terms["contrast"].item())
        taught.append(terms["efs_1"].item())
    assert found == pytest.approx([0.000674, 0.006005, 0.028650, 0.073162, 0.1], abs=1e-6)
    assert taught[1] / taught[2] == pytest.approx(torch.exp(torch.tensor(-1.25)).item())
    assert taught[2] == taught[3] == taught[4]


def test_pretraining_needs_labels_alone(ready) -> None:
    trainer, batch = ready(2, iteration=0, pretrain_share=0.5)
    assert trainer.pretrain_iterations == 4
    assert list(trainer.training_losses(batch)) == ["supervised_1", "supervised_2"]
    later = trainer.training_losses(dataclasses.replace(batch, iteration=4))
    assert "cps_1" in later


@pytest.mark.parametrize(
    "students",
    [("plan", "residual"), ("plan", "plan"), ("resnet34_vnet", "vnet"), ("plan", "mamba_unet:width=8,state_size=2")],
)
def test_pairs_of_students(students: tuple[str, str], ready) -> None:
    trainer, batch = ready(2, network=students[0], student2=students[1])
    terms = trainer.training_losses(batch)
    assert sum(students_moved_by(trainer, terms["contrast"])) == 1
    with torch.no_grad():
        one, two = (cce.as_list(student(batch.image_l))[0] for student in trainer.students)
    assert not torch.equal(one, two)  # also two of one architecture start differently


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"student2": "none"}, "two students"),
        ({"student2": "none", "deployed": "student1"}, "two students"),
        ({"network": "nothing"}, "residual"),
    ],
)
def test_impossible_students_are_errors(config, said: str, make_trainer) -> None:
    with pytest.raises(UsageError) as raised:
        make_trainer("CCETrainer", 2, config=config).initialize()
    assert said in str(raised.value)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_deployed_network_is_the_mean_and_fits_the_pair(dim: int, make_trainer) -> None:
    trainer = make_trainer("CCETrainer", dim, epoch=1, num_iterations=1)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    name = "2d" if dim == 2 else "3d_fullres"
    entry = read_json(folder.parent / "plans.json")["configurations"][name]["architecture"]
    weights = torch.load(folder / "checkpoint_final.pth", weights_only=True)["network_weights"]
    image = torch.randn(1, 1, *[16] * dim)
    stock = get_network_from_plans(*entry.values(), 1, 3, allow_init=False, deep_supervision=False)
    pair = CCEPair(1, 3, [16] * dim, entry["arch_kwargs"]["strides"])
    trainer.set_deep_supervision_enabled(False)
    for network in (stock, pair):
        network.load_state_dict(weights)
        with torch.no_grad():
            probs = torch.stack([student.eval()(image).softmax(1) for student in trainer.students]).mean(0)
            torch.testing.assert_close(network.eval()(image).softmax(1), probs)


def test_one_region_is_foreground_and_background(ready, monkeypatch) -> None:
    monkeypatch.setattr(cce, "DRAWN_SHARE", None)
    results = []
    a, b = 2 * torch.randn((2, 4, 1, 16, 16), generator=torch.Generator().manual_seed(11))
    y = torch.randint(2, (2, 1, 16, 16), generator=torch.Generator().manual_seed(12)).float()
    for regions in (True, False):
        trainer, batch = ready(2, preset="paper", augmentation="nnunet")
        trainer.label_manager._has_regions = regions
        pair = [z.clone() if regions else torch.cat([torch.zeros_like(z), z], 1) for z in (a, b)]
        features = [torch.cat([torch.zeros_like(z), z], 1) for z in (a, b)]
        for kept, z in zip(trainer.features, features, strict=True):
            kept.take = lambda _, z=z: z
        hooks = trainer.features
        trainer.features = []
        terms = on_logits(trainer, *pair, dataclasses.replace(batch, target_l=y))
        trainer.features = hooks
        terms = terms | {"contrast": trainer.training_losses(dataclasses.replace(batch, target_l=y))["contrast"]}
        results.append(terms)
    for name, term in results[0].items():
        assert term.item() == pytest.approx(results[1][name].item(), rel=1e-4), name
