from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from nnssl.errors import UsageError
from nnssl.ingredients.consistency import soft_dice_distance
from nnssl.ingredients.mixing import copy_paste_mask
from nnssl.ingredients.pseudo_labels import largest_component
from nnssl.ingredients.refinement import enhance
from nnssl.ingredients.supervised import masked_dice_ce
from nnssl.system.files import read_json

SMALL_MAMBA = "mamba_unet:width=8,state_size=2"
SMALL = {"student2": SMALL_MAMBA, "pretrain_least": 0}


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes an initialised DSMTTrainer with one batch; self-training from iteration 2 of 8."""

    def make(dim: int = 2, iteration: int = 3, num_iterations: int = 8, **config):
        trainer = make_trainer("DSMTTrainer", dim, num_iterations=num_iterations, config={**SMALL, **config})
        trainer.initialize()
        trainer.set_training_mode()
        batch = trainer._move_to_device(next(trainer.get_dataloaders()[0]))
        return trainer, dataclasses.replace(batch, iteration=iteration)

    return make


def gradients(network: nn.Module) -> float:
    return sum(p.grad.abs().sum().item() for p in network.parameters() if p.grad is not None)


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def images_seen_by(network: nn.Module) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    return seen


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("iteration", [0, 3])
def test_each_term_moves_its_own_student_only(dim: int, iteration: int, ready) -> None:
    trainer, batch = ready(dim, iteration)
    terms = trainer.training_losses(batch)
    kinds = ["labelled", "supervised"] if iteration == 0 else ["labelled", "supervised", "contrast"]
    assert set(terms) == {f"{kind}_{number}" for kind in kinds for number in (1, 2)}
    for name, term in terms.items():
        for network in (trainer.network, trainer.network2):
            network.zero_grad()
        term.backward(retain_graph=True)
        moved = [gradients(network) > 0 for network in trainer.students]
        assert moved == [name.endswith("1"), name.endswith("2")]
        assert gradients(trainer.teacher) == 0


def reference_mixed(outputs, outside, inside, mask, w_out, w_in, weights, form):  # noqa: PLR0917
    total = 0.0
    for weight, z in zip(weights[: len(outputs)], outputs, strict=True):
        y, q = (
            functional.interpolate(t.float(), z.shape[2:], mode="nearest-exact")[:, 0].long() for t in (outside, inside)
        )
        m = functional.interpolate(mask, z.shape[2:], mode="nearest-exact")
        total += weight * (w_out * masked_dice_ce(z, y, m, form) + w_in * masked_dice_ce(z, q, 1 - m, form))
    return total / sum(weights[: len(outputs)])


def reference_mix(outputs, outside, inside, mask, w_out, w_in, weights, form, counts=None):  # noqa: PLR0917
    """The same with one Dice over the mix, from weighted sums over its voxels."""
    total = 0.0
    for weight, z in zip(weights[: len(outputs)], outputs, strict=True):
        y, q, m, c = (
            functional.interpolate(t.float(), z.shape[2:], mode="nearest-exact")
            for t in (outside, inside, mask, torch.ones_like(inside) if counts is None else counts)
        )
        omega = w_out * m + w_in * (1 - m) * c
        total += weight * (w_out + w_in) * masked_dice_ce(z, torch.where(m > 0, y, q)[:, 0].long(), omega, form)
    return total / sum(weights[: len(outputs)])


PAPER_LOSS = {"labelled_loss": "mixed", "pairs": "halves", "mixed_dice": "regions", "pseudo_confidence": 0.0}
PAPER_LOSS |= {"largest_component": True}


@pytest.mark.parametrize(("dim", "form"), [(2, "squared_batch"), (3, "linear_sample")])
@pytest.mark.parametrize("literal", [False, True])
def test_self_training_of_the_paper_is_equation_14(dim: int, form: str, literal: bool, ready) -> None:
    switches = {"propagation": "literal"} if literal else {}
    trainer, batch = ready(dim, iteration=5, contrast_rampup=0, **PAPER_LOSS, **switches)
    trainer.network2.eval()  # no DropPath, so that the passes can be repeated
    torch.manual_seed(3)
    terms = trainer.training_losses(batch)
    torch.manual_seed(3)
    mask = copy_paste_mask(batch.image_l.shape[2:])
    (x_b, x_a), (y_b, y_a), (u_a, u_b) = (t.split(1) for t in (batch.image_l, batch.target_l[0], batch.image_u_s))
    with torch.no_grad():
        guess = largest_component((trainer.teacher(batch.image_u_w)[0].argmax(1, keepdim=True) * batch.mask_u)[:, 0], 3)
    q_a, q_b = guess[:1, None], guess[1:, None]
    scan_a, scan_b = batch.mask_u.split(1)
    x_l, x_u = mask * x_b + (1 - mask) * u_b, mask * u_a + (1 - mask) * x_a
    seen = (mask > 0) | scan_b, (mask == 0) | scan_a
    alpha = 0.5 + 0.5 * (5 - 2) / (8 - 2)
    scales = trainer.loss.weight_factors
    z = [[student(x) for x in (x_l, x_u)] for student in trainer.students]
    p = [[both[0].softmax(1) for both in student] for student in z]
    for i, weight in enumerate((alpha, 1 - alpha)):
        on_l = reference_mixed(z[i][0], y_b, q_b, mask, 1.0, 0.5, scales, form)
        on_u = reference_mixed(z[i][1], q_a, y_a, mask, 0.5, 1.0, scales, form)
        assert terms[f"supervised_{i + 1}"].item() == pytest.approx(weight * (on_l + on_u).item(), abs=1e-5)
        mode, dice = ("literal", "linear") if literal else ("propagate", "squared")
        distances = [
            soft_dice_distance(p[i][k], enhance(p[1 - i][k].detach(), image, mode=mode), dice, seen[k])
            for k, image in enumerate((x_l, x_u))
        ]
        expected = weight * 0.5 * sum(distances).item() / 2
        assert terms[f"contrast_{i + 1}"].item() == pytest.approx(expected, abs=1e-5)
    assert set(terms) == {f"{kind}_{number}" for kind in ("supervised", "contrast") for number in (1, 2)}


@pytest.mark.parametrize(("dim", "form"), [(2, "squared_batch"), (3, "linear_sample")])
def test_self_training_mixes_whole_batches_beside_nnunets_loss(dim: int, form: str, ready) -> None:
    trainer, batch = ready(dim, iteration=5, contrast_weight=0.0)
    trainer.network2.eval()
    teacher = 6 * torch.randn(2, 3, *batch.image_l.shape[2:], generator=torch.Generator().manual_seed(2))
    trainer.teach = lambda _: teacher.softmax(1)
    batch.mask_u[..., :3] = False
    seen = images_seen_by(trainer.network)
    torch.manual_seed(3)
    terms = trainer.training_losses(batch)
    torch.manual_seed(3)
    mask = copy_paste_mask(batch.image_l.shape[2:])
    x, u, y = batch.image_l, batch.image_u_s, batch.target_l[0]
    after = [1, 0]  # of two samples, the one before
    x_l, x_u = mask * x + (1 - mask) * u[after], mask * u + (1 - mask) * x[after]
    assert torch.equal(seen[0], torch.cat([x, x_l, x_u]))
    confidence, guess = teacher.softmax(1).max(1, keepdim=True)
    sure = (confidence >= 0.8) & batch.mask_u
    assert 0.1 < sure.float().mean() < 0.9
    guess, counts = guess * sure, sure | ~batch.mask_u
    scales, alpha = trainer.loss.weight_factors, 0.75
    for i, (student, weight) in enumerate(zip(trainer.students, (alpha, 1 - alpha), strict=True), start=1):
        on_l = reference_mix(student(x_l), y, guess[after], mask, 1.0, 0.5, scales, form, counts[after])
        flipped = reference_mix(student(x_u), y[after], guess, 1 - mask, 1.0, 0.5, scales, form, counts)
        assert terms[f"supervised_{i}"].item() == pytest.approx(weight * (on_l + flipped).item(), abs=1e-5)
        expected = weight * trainer.loss(student(x), batch.target_l)
        assert terms[f"labelled_{i}"].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("mix", ["both", "one"])
@pytest.mark.parametrize("pairs", ["all", "halves"])
def test_pretraining_pastes_labelled_patches_into_each_other(mix: str, pairs: str, ready) -> None:
    trainer, batch = ready(3, iteration=0, pretrain_mix=mix, pairs=pairs, mixed_dice="regions")
    seen = images_seen_by(trainer.network)
    torch.manual_seed(1)
    terms = trainer.training_losses(batch)
    torch.manual_seed(1)
    mask = copy_paste_mask(batch.image_l.shape[2:])
    x, y = batch.image_l, batch.target_l[0]
    (a, b), (y_a, y_b) = ((x[:1], x[1:]), (y[:1], y[1:])) if pairs == "halves" else ((x, x[[1, 0]]), (y, y[[1, 0]]))
    images = [mask * a + (1 - mask) * b, mask * b + (1 - mask) * a][: 2 if mix == "both" else 1]
    assert torch.equal(seen[0], torch.cat([x, *images]))
    labels = [(y_a, y_b), (y_b, y_a)]
    scales = trainer.loss.weight_factors
    losses = [
        reference_mixed(trainer.network(image), *pair, mask, 1, 1, scales, "linear_sample")
        for image, pair in zip(images, labels[: len(images)], strict=True)
    ]
    assert terms["supervised_1"].item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)
    torch.testing.assert_close(terms["labelled_1"], trainer.loss(trainer.network(x), batch.target_l))


@pytest.mark.parametrize("iteration", [0, 5])
def test_labels_that_teach_by_mixes_alone(iteration: int, ready) -> None:
    trainer, batch = ready(2, iteration, labelled_loss="mixed")
    seen = images_seen_by(trainer.network)
    terms = trainer.training_losses(batch)
    assert not any(name.startswith("labelled") for name in terms)
    assert len(seen[0]) == 4  # two mixes of the batch


@pytest.mark.parametrize("dim", [2, 3])
def test_pretraining_without_mixing_is_nnunets(dim: int, ready) -> None:
    trainer, batch = ready(dim, iteration=0, pretrain_mix="none")
    trainer.network2.eval()
    terms = trainer.training_losses(batch)
    assert torch.equal(terms["supervised_1"], trainer.loss(trainer.network(batch.image_l), batch.target_l))
    assert torch.equal(terms["supervised_2"], trainer.loss(trainer.network2(batch.image_l), batch.target_l))


@pytest.mark.parametrize("optimizer", ["sgd", "auto"])
def test_phases_teacher_and_optimisers(optimizer: str, ready) -> None:
    trainer, _ = ready(2, optimizer=optimizer)
    stream = trainer.get_dataloaders()[0]
    rates = []
    for step in range(1, 5):
        before = weights(trainer.teacher)
        batch = next(stream)
        trainer.train_step(batch if "labelled" in batch else next(stream))
        rates.append([group["lr"] for _, optimizer in trainer.trained for group in optimizer.param_groups])
        student, teacher = weights(trainer.network), weights(trainer.teacher)
        expected = student if step <= 2 else 0.99 * before + 0.01 * student
        torch.testing.assert_close(teacher, expected)
        assert bool(trainer.optimizer.state) == bool(trainer.optimizer2.state) == (step != 2)
    poly = [1.0, (7 / 8) ** 0.9, 1.0, (5 / 6) ** 0.9]
    first = {"sgd": [0.01, 0.01, 0.01], "auto": [0.01, 5e-4, 5e-4]}[optimizer]
    beta = {"sgd": [1.0] * 4, "auto": [1.0, 1.0, 1 / 2, 5 / 12]}[optimizer]
    for row, factor, weight in zip(rates, poly, beta, strict=True):
        assert row == pytest.approx([factor * first[0], *(factor * weight * rate for rate in first[1:])])
    assert type(trainer.optimizer2).__name__ == {"sgd": "SGD", "auto": "AdamW"}[optimizer]
    assert trainer.optimizer2.param_groups[1]["weight_decay"] == 0.0  # decay rates and direct paths of the blocks


def test_student_weights_of_equation_14(ready) -> None:
    trainer, _ = ready(num_iterations=30_000, pretrain_share=0.0)
    assert trainer.loss_weights(0) == (0.5, 0.5)
    assert trainer.loss_weights(7_500) == pytest.approx((0.625, 0.375))
    assert trainer.loss_weights(30_000) == (1.0, 0.0)
    alone, _ = ready(student2="none")
    assert alone.loss_weights(3)[0] == 1.0
    assert ready()[0].loss_weights(1) == (1.0, 1.0)  # pre-training


@pytest.mark.parametrize(
    ("rampup", "iteration", "share"),
    [
        (0, 20, 1.0),
        (10, 20, 0.006738),  # exp(−5)
        (10, 25, 0.286505),  # exp(−5/4)
        (10, 30, 1.0),
        (2_000, 60, 0.286505),  # at most the 80 iterations of self-training
        (2_000, 100, 1.0),
    ],
)
def test_contrast_rises_from_the_first_step_of_self_training(rampup: int, iteration: int, share: float, ready) -> None:
    settings = {"pretrain_share": 0.2, "propagation": "off", "student2": "plan"}
    trainer, batch = ready(2, iteration, num_iterations=100, contrast_rampup=rampup, **settings)
    torch.manual_seed(5)
    terms = trainer.training_losses(batch)
    trainer.config = dataclasses.replace(trainer.config, contrast_rampup=0)
    torch.manual_seed(5)
    constant = trainer.training_losses(batch)
    for name, value in constant.items():
        expected = value.item() * (share if name.startswith("contrast") else 1.0)
        assert terms[name].item() == pytest.approx(expected, rel=1e-4)


def test_a_fold_of_another_network_than_the_others_is_refused(make_trainer) -> None:
    done = make_trainer("DSMTTrainer", 2, epoch=1, num_iterations=2, config={**SMALL, "student2": "plan"})
    done.run_training()
    folder = Path(done.output_folder)
    folder.rename(folder.with_name("fold_1"))
    before = (folder.parent / "plans.json").read_bytes()
    make_trainer("DSMTTrainer", 2, epoch=1, num_iterations=2, config={"student2": "none"}).run_training()
    other = make_trainer("DSMTTrainer", 2, config={"student2": "plan", "deployed": "mean"})
    with pytest.raises(UsageError, match="another one than that of fold_1"):
        other.run_training()
    assert read_json(folder.parent / "plans.json")["configurations"] == json.loads(before)["configurations"]


ABLATIONS = [
    {"network": "unet_bcp", "student2": SMALL_MAMBA},
    {"network": "unet_bcp", "student2": "unet_bcp", "teacher_mode": "train"},
    {"network": SMALL_MAMBA, "teacher_mode": "eval"},
    {"network": "vnet", "student2": "plan", "deployed": "teacher"},
    {"student2": "nnssl.networks.vnet.VNet"},
    {"student2": "none"},
    {"copy_paste": False},
    {"noise_std": 0.1},
    {"largest_component": True, "pseudo_confidence": 0.0},
    {"labelled_loss": "mixed"},
    {"pairs": "halves"},
    {"mixed_dice": "regions"},
    {"contrast_weight": 0.0},
    {"propagation_iterations": 0},
    {"propagation": "off"},
    {"similarity_temperature": 1.0, "threshold_factor": 0.0, "mask_steepness": 5.0, "retention": 0.5},
    {"preset": "paper"},
]


@pytest.mark.parametrize("config", ABLATIONS, ids=lambda config: ",".join(f"{k}={v}" for k, v in config.items()))
def test_every_ablation_trains(config, ready) -> None:
    trainer, batch = ready(2, **config)
    before = [weights(network) for network in trainer.students]
    terms = trainer.training_losses(batch)
    assert all(torch.isfinite(term) for term in terms.values())
    students = 1 if config.get("student2") == "none" else 2
    contrast = students == 2 and config.get("contrast_weight") != 0.0
    labelled = "labelled_loss" not in config and "preset" not in config
    assert len(terms) == students * (1 + labelled + contrast)
    trainer._optimise(torch.stack(list(terms.values())).sum())
    assert all(not torch.equal(weights(n), old) for n, old in zip(trainer.students, before, strict=True))


def test_without_enhancement_the_target_is_the_other_students_prediction(ready) -> None:
    trainer, batch = ready(2, iteration=2, propagation="off", contrast_rampup=0)
    trainer.network2.eval()
    seen, images = images_seen_by(trainer.network), None
    terms = trainer.training_losses(batch)
    images = seen[0][2:]
    with torch.no_grad():
        p1, p2 = trainer.network(images)[0].softmax(1), trainer.network2(images)[0].softmax(1)
    assert batch.mask_u.all()
    expected = (soft_dice_distance(p1[:2], p2[:2]) + soft_dice_distance(p1[2:], p2[2:])) / 2
    assert terms["contrast_1"].item() == pytest.approx(0.5 * 0.5 * expected.item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["padding", "ignore"])
def test_the_contrast_leaves_out_padding_and_voxels_with_the_ignore_label(kind: str, ready) -> None:
    trainer, batch = ready(2, contrast_rampup=0, propagation="off")
    if kind == "padding":
        batch.mask_u[..., :4] = False
    else:
        batch.target_l[0][..., :4] = 9
        trainer.label_manager._ignore_label = 9
        trainer.supervised_loss = lambda outputs, _: outputs[0].mean()
        trainer.mixed_loss = dataclasses.replace(trainer.mixed_loss, ignore_label=9)
    kept: list[torch.Tensor] = []
    trainer.network.register_forward_hook(lambda *arguments: kept.append(arguments[-1][0]))
    torch.manual_seed(4)
    terms = trainer.training_losses(batch)
    torch.manual_seed(4)
    outside = copy_paste_mask(batch.image_l.shape[2:])[0, 0] > 0
    (gradient,) = torch.autograd.grad(terms["contrast_1"], kept)
    on_labelled = torch.stack([outside, outside, ~outside, ~outside])  # in x_L and x_U, two samples each
    unseen = on_labelled if kind == "ignore" else ~on_labelled
    unseen[..., 4:] = False
    touched = gradient[2:].abs().sum(1) > 0
    assert unseen.any()
    assert not touched[unseen].any()
    assert touched[~unseen].all()


@pytest.mark.parametrize("labelled_loss", ["both", "mixed"])
@pytest.mark.parametrize("pairs", ["all", "halves"])
def test_without_copy_paste_all_patches_stay_whole(labelled_loss: str, pairs: str, ready) -> None:
    trainer, batch = ready(2, copy_paste=False, labelled_loss=labelled_loss, pairs=pairs, pseudo_confidence=0.0)
    seen = images_seen_by(trainer.network)
    terms = trainer.training_losses(batch)
    assert torch.equal(seen[0], torch.cat([batch.image_l, batch.image_u_s]))
    (weight, _), everywhere = trainer.loss_weights(3), torch.ones_like(batch.image_u_s)
    guess = trainer.teach(batch.image_u_w).argmax(1, keepdim=True) * batch.mask_u
    scales = trainer.loss.weight_factors
    pairs_of_loss = (
        (trainer.network(batch.image_l), batch.target_l[0], 1.0),
        (trainer.network(batch.image_u_s), guess, 0.5),
    )
    expected = sum(reference_mixed(z, y, y, everywhere, w, 0, scales, "squared_batch") for z, y, w in pairs_of_loss)
    assert terms["supervised_1"].item() == pytest.approx(weight * expected.item(), abs=1e-5)
    trained = trainer.training_losses(dataclasses.replace(batch, iteration=0))
    assert torch.equal(seen[-1], batch.image_l)
    whole = reference_mixed(
        trainer.network(batch.image_l), batch.target_l[0], guess, everywhere, 1, 0, scales, "squared_batch"
    )
    assert trained["supervised_1"].item() == pytest.approx(whole.item(), abs=1e-5)


@pytest.mark.parametrize("dim", [2, 3])
def test_with_halves_the_patch_with_forced_foreground_keeps_the_label_of_its_centre(dim: int, ready) -> None:
    trainer, batch = ready(dim, pairs="halves")  # nnU-Net centres the last patches of a batch on foreground
    batch.target_l[0][1] = 2
    batch.target_l[0][0] = 0
    seen = []
    trainer.mixed_loss = lambda _, outside, inside, __: seen.append((outside, inside)) or torch.zeros(())
    trainer.training_losses(batch)
    (labelled_outside, _), (_, labelled_inside) = seen[:2]
    assert labelled_outside.target.max() == 0
    assert labelled_inside.target.min() == 2


def test_noise_on_unlabelled_images_reaches_the_teacher_and_the_students(ready) -> None:
    trainer, batch = ready(2, noise_std=0.1, copy_paste=False)
    student, teacher = images_seen_by(trainer.network), images_seen_by(trainer.teacher)
    trainer.training_losses(batch)
    noise = student[0][2:] - batch.image_u_s
    assert 0.07 < noise.std().item() < 0.13
    torch.testing.assert_close(teacher[0] - batch.image_u_w, noise, atol=1e-5, rtol=0)
    assert torch.equal(student[0][:2], batch.image_l)


@pytest.mark.parametrize("pairs", ["all", "halves"])
def test_one_labelled_patch_is_mixed_with_itself(pairs: str, ready) -> None:
    trainer, batch = ready(2, iteration=0, pairs=pairs)
    single = dataclasses.replace(batch, image_l=batch.image_l[:1], target_l=[t[:1] for t in batch.target_l])
    seen = images_seen_by(trainer.network)
    trainer.training_losses(single)
    assert torch.equal(seen[0], batch.image_l[:1].expand(3, -1, -1, -1))


def test_the_preset_paper_has_the_losses_of_the_paper(ready) -> None:
    trainer, _ = ready(2, preset="paper")
    assert {name: getattr(trainer.config, name) for name in PAPER_LOSS} == PAPER_LOSS
    assert trainer.mixed_loss.separate_sides
    assert not ready(2)[0].mixed_loss.separate_sides
