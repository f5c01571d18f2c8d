from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn
from torch.nn import functional

import nnssl_trainers.methods.plgdf as module
from nnssl.config import config_with
from nnssl.errors import UsageError
from nnssl.ingredients.consistency import multiscale_consistency
from nnssl.ingredients.pseudo_labels import sharpen
from nnssl.system.files import read_json
from nnssl_trainers.methods.plgdf import PLGDFConfig


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes an initialised PLGDFTrainer with one batch, at iteration 3 of 8."""

    def make(dim: int = 2, **config):
        trainer = make_trainer("PLGDFTrainer", dim, num_iterations=8, config=config)
        trainer.initialize()
        trainer.set_training_mode()
        batch = trainer._move_to_device(next(trainer.get_dataloaders()[0]))
        return trainer, dataclasses.replace(batch, iteration=3)

    return make


def forwards_of(network: nn.Module) -> list[tuple[Tensor, list[Tensor]]]:
    """Return a list that gets the images and the outputs of every forward pass."""
    seen: list[tuple[Tensor, list[Tensor]]] = []
    network.register_forward_hook(lambda _, images, outputs: seen.append((images[0].detach(), outputs)))
    return seen


def weights(network: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def naive_loss(logits: Tensor, target: Tensor, mask: Tensor, factor: int = 2) -> Tensor:
    """CE + Dice of eq. 10 over the voxels of a mask; target (B, *S)."""
    keep = mask[:, 0].bool()
    p, y = logits.softmax(1).movedim(1, -1)[keep], target[keep]
    g = functional.one_hot(y, p.shape[1]).to(p)
    dice = 1 - factor * (p * g).sum(0) / (p.square().sum(0) + g.square().sum(0))
    return functional.cross_entropy(p.log(), y) + dice.mean()


@pytest.mark.parametrize(("dim", "mode"), [(2, "bilinear"), (3, "trilinear")])
def test_the_step_is_equation_9(dim: int, mode: str, ready) -> None:
    trainer, batch = ready(dim)
    batch.mask_u[0, :, :3] = False
    taught, learned = forwards_of(trainer.teacher), forwards_of(trainer.network)
    terms = trainer.training_losses(batch)
    ((copies, guesses),) = taught
    ((images, outputs),) = learned
    labelled, mixed, raw = images.split([2, 4, 2])
    assert torch.equal(raw, batch.image_u_w)
    for noisy, clean in ((labelled, batch.image_l), (copies, torch.cat([raw, raw]))):
        noise = noisy - clean
        assert noise.abs().max().item() == pytest.approx(0.2, abs=1e-6)
        assert noise.std().item() == pytest.approx(0.095945, abs=0.005)
    assert not torch.equal(copies[:2], copies[2:])
    partners = []
    for i in range(4):  # mixed = λ'·copy + (1 − λ')·partner
        found = []
        for j in range(2):
            difference = labelled[j] - copies[i]
            share = ((mixed[i] - copies[i]) * difference).sum() / difference.square().sum()
            found.append((mixed[i] - copies[i] - share * difference).abs().max().item() < 1e-5)
            if found[-1]:
                assert 0 <= share <= 0.5
        assert sum(found) == 1
        partners.append(found.index(True))
    assert sorted(partners) == [0, 0, 1, 1]

    guess = torch.stack([guesses[0][:2].softmax(1), guesses[0][2:].softmax(1)]).mean(0).argmax(1)
    scales = [functional.interpolate(z, outputs[0].shape[2:], mode=mode) for z in outputs]
    everywhere, mask = torch.ones_like(batch.mask_u), batch.mask_u
    labels = batch.target_l[0][:, 0].long()
    double = (torch.cat([guess, guess]), torch.cat([mask, mask]))
    expected = {
        "supervised": sum(naive_loss(z[:2], labels, everywhere) for z in scales) / len(scales),
        "semi": sum(naive_loss(z[2:6], *double) for z in scales) / len(scales),
    }
    rampup = math.exp(-5 * (1 - 3 / (0.4 * 8)) ** 2)
    squares = [(z[6:].softmax(1) - sharpen(z[6:].softmax(1), 0.1)).square().movedim(1, -1)[mask[:, 0]] for z in scales]
    expected["sharpening"] = rampup * torch.stack(squares).sum(-1).mean()  # sum over the classes
    expected["consistency"] = rampup * multiscale_consistency([z[2:] for z in scales], mask=torch.cat([mask] * 3))
    assert list(terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)


@pytest.mark.parametrize("preset", ["default", "code"])
def test_each_term_learns_from_its_own_patches(preset: str, ready) -> None:
    trainer, batch = ready(2, preset=preset)
    learned = forwards_of(trainer.network)
    terms = trainer.training_losses(batch)
    outputs = learned[0][1]
    rows = {"supervised": {0, 1}, "semi": {2, 3, 4, 5}, "sharpening": {6, 7}, "consistency": {2, 3, 4, 5, 6, 7}}
    for name, term in terms.items():
        for gradient in torch.autograd.grad(term, outputs, retain_graph=True):
            assert {i for i, row in enumerate(gradient) if row.any()} == rows[name]
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is None for parameter in trainer.teacher.parameters())


def test_what_stands_for_labels_of_unlabelled_patches_is_never_read(ready) -> None:
    trainer, _ = ready(2)
    raw = next(trainer.get_dataloaders()[0])
    found = []
    for value in (0, 2):
        raw["unlabelled"]["target"][raw["unlabelled"]["target"] >= 0] = value
        torch.manual_seed(1)
        found.append(torch.stack(list(trainer.training_losses(trainer._move_to_device(raw)).values())))
    assert torch.equal(*found)


def test_no_strong_view_is_made(ready) -> None:
    trainer, batch = ready(2)
    raw = next(trainer.get_dataloaders()[0])
    assert raw["unlabelled"]["data"].shape[1] == raw["labelled"]["data"].shape[1]
    assert batch.image_u_s is None
    assert batch.image_u_w.shape == batch.image_l.shape


def test_pseudo_labels_are_the_argmax_of_the_mean_over_copies(ready) -> None:
    trainer, _ = ready(2)
    foreground = torch.tensor([[0.45, 0.70, 0.20, 0.52], [0.60, 0.40, 0.10, 0.49]])
    probs = torch.stack([1 - foreground, foreground], 1)
    trainer.teach = lambda _: probs
    labels, counts = trainer.guess_labels(probs)
    assert labels.tolist() == [[[1, 1, 0, 1]]]
    assert counts.all()
    trainer.label_manager._has_regions = True
    assert trainer.guess_labels(probs)[0][:, 1].tolist() == [[1, 1, 0, 1]]


def test_pseudo_labels_below_the_confidence_are_ignored(ready) -> None:
    trainer, batch = ready(2, pseudo_confidence=0.4)
    batch.mask_u[0, :, :3] = False
    taught, learned = forwards_of(trainer.teacher), forwards_of(trainer.network)
    semi = trainer.training_losses(batch)["semi"]
    guesses = taught[0][1][0].softmax(1)
    confidence, guess = ((guesses[:2] + guesses[2:]) / 2).max(1, keepdim=True)
    counts = batch.mask_u & (confidence >= 0.4)
    assert 0.05 < counts.float().mean() < 0.95
    outputs = learned[0][1]
    scales = [functional.interpolate(z, outputs[0].shape[2:], mode="bilinear")[2:6] for z in outputs]
    double = (torch.cat([guess, guess])[:, 0], torch.cat([counts, counts]))
    torch.testing.assert_close(semi, sum(naive_loss(z, *double) for z in scales) / len(scales))


@pytest.mark.parametrize("preset", ["default", "paper", "code"])
def test_the_loss_of_labels_has_nnunets_scale_unless_a_preset_asks_for_half_the_sum(preset: str, ready) -> None:
    trainer, batch = ready(2, preset=preset, network="vnet_multiscale", augmentation="nnunet")
    learned = forwards_of(trainer.network)
    found = trainer.training_losses(batch)["supervised"]
    labels, everywhere = batch.target_l[0][:, 0].long(), torch.ones_like(batch.mask_u)
    outputs = learned[0][1]
    scales = [functional.interpolate(z, outputs[0].shape[2:], mode="bilinear")[:2] for z in outputs]
    expected = sum(naive_loss(z, labels, everywhere, 1 if preset == "code" else 2) for z in scales)
    assert len(scales) == 2
    torch.testing.assert_close(found, expected / 2)  # with two scales, half the sum is the mean


@pytest.mark.parametrize(("preset", "factor"), [("default", 0.5), ("paper", 1.0), ("code", 1.0)])
def test_scale_of_four_outputs(preset: str, factor: float, make_tiny, make_trainer) -> None:
    make_tiny(
        2,
        n_stages=5,
        features_per_stage=[4] * 5,
        kernel_sizes=[[3, 3]] * 5,
        strides=[[1, 1], *[[2, 2]] * 4],
        n_conv_per_stage=[1] * 5,
        n_conv_per_stage_decoder=[1] * 4,
    )
    trainer = make_trainer("PLGDFTrainer", 2, config={"preset": preset, "augmentation": "nnunet"})
    trainer.initialize()
    assert trainer.segmentation_loss.scale_weights == (factor,) * 4


def test_sharpening_of_regions_sums_over_both_classes_of_each(ready) -> None:
    trainer, batch = ready(2)
    learned = forwards_of(trainer.network)
    trainer.label_manager._has_regions = True
    trainer.segmentation_loss = lambda outputs, *_: outputs[0].mean()
    terms = trainer.training_losses(batch)
    outputs = learned[0][1]
    scales = [functional.interpolate(z, outputs[0].shape[2:], mode="bilinear")[6:].sigmoid() for z in outputs]
    squares = [2 * (p - sharpen(p, 0.1, binary=True)).square() for p in scales]
    kept = torch.stack([each.movedim(1, -1)[batch.mask_u[:, 0]] for each in squares]).mean()
    torch.testing.assert_close(terms["sharpening"], trainer.rampup(3) * kept)


@pytest.mark.parametrize(("labelled", "unlabelled", "copies"), [(1, 3, 3), (2, 2, 2), (3, 1, 2)])
def test_any_batch_and_number_of_copies(labelled: int, unlabelled: int, copies: int, ready, monkeypatch) -> None:
    trainer, batch = ready(2, copies=copies)

    def rows(x: Tensor, count: int) -> Tensor:
        return x[[i % len(x) for i in range(count)]]

    batch = dataclasses.replace(
        batch,
        image_l=rows(batch.image_l, labelled),
        target_l=[rows(part, labelled) for part in batch.target_l],
        image_u_w=rows(batch.image_u_w, unlabelled),
        mask_u=rows(batch.mask_u, unlabelled),
    )
    partners: list[Tensor] = []
    original = module.predominant_mixup
    monkeypatch.setattr(module, "predominant_mixup", lambda u, p, a: partners.append(p) or original(u, p, a))
    learned = forwards_of(trainer.network)
    terms = trainer.training_losses(batch)
    assert all(term.isfinite() for term in terms.values())
    noisy = learned[0][0][:labelled]
    used = [sum(torch.equal(p, image) for p in partners[0]) for image in noisy]
    assert sum(used) == copies * unlabelled
    assert max(used) - min(used) <= 1


def test_four_classes_and_two_copies(make_tiny, make_trainer) -> None:
    folder = make_tiny(2)
    dataset_json = json.loads((folder / "dataset.json").read_text())
    dataset_json["labels"] = {"background": 0, "core": 1, "rim": 2, "rare": 3}
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    trainer = make_trainer("PLGDFTrainer", 2)
    trainer.initialize()
    terms = trainer.training_losses(trainer._move_to_device(next(trainer.get_dataloaders()[0])))
    assert all(term.isfinite() for term in terms.values())


@pytest.mark.parametrize("preset", ["default", "paper", "code"])
def test_extreme_logits_give_finite_losses(preset: str, ready) -> None:
    trainer, batch = ready(2, preset=preset)
    trainer.network.register_forward_hook(lambda _, __, outputs: [60 * z.sign() for z in outputs])
    assert all(term.isfinite() for term in trainer.training_losses(batch).values())


@pytest.mark.parametrize(
    ("config", "total", "values"),
    [
        ({"rampup_share": 1.0}, 15000, {0: 0.006738, 1500: 0.017422, 3000: 0.040762, 7500: 0.286505, 15000: 1.0}),
        ({}, 15000, {1500: 0.060055, 3000: 0.286505, 6000: 1.0, 9000: 1.0}),
        ({"preset": "code"}, 15000, {1500: 0.060055, 1649: 0.060055, 3000: 0.286505, 3149: 0.286505, 6000: 1.0}),
        ({"rampup_share": 0.0, "preset": "code"}, 100, {0: 1.0}),
        ({"preset": "paper"}, 15000, {7500: 0.286505, 15000: 1.0}),
    ],
)
def test_ramp(config, total: int, values: dict[int, float], make_trainer) -> None:
    trainer = make_trainer("PLGDFTrainer", 2, num_iterations=total, config=config)
    for iteration, value in values.items():
        assert trainer.rampup(iteration) == pytest.approx(value, abs=1e-6)


def test_stairs_are_150_iterations_of_6000(make_trainer) -> None:
    trainer = make_trainer("PLGDFTrainer", 2, num_iterations=15000, config={"preset": "code"})
    reached = [trainer.rampup(t) for t in range(6001)]
    assert reached == pytest.approx([math.exp(-5 * (1 - t // 150 * 150 / 6000) ** 2) for t in range(6001)])


def test_the_preset_is_the_code(ready) -> None:
    trainer, _ = ready(2, preset="code")
    assert trainer.config.changes() == {"preset": "code"}
    assert trainer.segmentation_loss.dice == "halved_batch"
    assert ready(2)[0].segmentation_loss.dice == "squared_batch"


def test_the_preset_changes_the_losses(ready) -> None:
    trainer, batch = ready(2, preset="code")
    learned = forwards_of(trainer.network)
    terms = trainer.training_losses(batch)
    outputs = learned[0][1]
    scales = [functional.interpolate(z, outputs[0].shape[2:], mode="bilinear") for z in outputs]
    labels, mask = batch.target_l[0][:, 0].long(), batch.mask_u
    expected = sum(naive_loss(z[:2], labels, torch.ones_like(mask), factor=1) for z in scales) / 2
    torch.testing.assert_close(terms["supervised"], expected)
    rampup = math.exp(-5 * (1 - 37 / 40) ** 2)  # 3 of 3.2 iterations are 37.5 of 40 stairs
    cube = rampup * multiscale_consistency([z[2:] for z in scales], "code", torch.cat([mask] * 3))
    torch.testing.assert_close(terms["consistency"], cube)
    squares = [(z[6:].softmax(1) - sharpen(z[6:].softmax(1), 0.1, binary=True)).square() for z in scales]
    kept = torch.stack([square.movedim(1, -1)[mask[:, 0]] for square in squares]).mean()
    torch.testing.assert_close(terms["sharpening"], rampup * kept)


@pytest.mark.parametrize(
    ("preset", "teacher", "student"), [("default", 0.01, 1.0), ("code", 0.019898, 0.9998)], ids=["default", "code"]
)
def test_late_updates_of_the_teacher(preset: str, teacher: float, student: float, ready) -> None:
    trainer, _ = ready(2, preset=preset, network="vnet_multiscale")
    with torch.no_grad():
        for network, value in ((trainer.network, 1.0), (trainer.teacher, 0.0)):
            for tensor in network.state_dict().values():
                tensor.fill_(value)
    trainer.iteration = 500
    trainer.after_step()
    for network, value in ((trainer.network, student), (trainer.teacher, teacher)):
        torch.testing.assert_close(weights(network), torch.full_like(weights(network), value), atol=1e-6, rtol=0)
        statistics = [b for b in network.buffers() if b.is_floating_point()]
        moved = 0.01 if network is trainer.teacher else student  # buffers follow once in both
        torch.testing.assert_close(statistics[0], torch.full_like(statistics[0], moved), atol=1e-6, rtol=0)


def test_the_first_updates_are_a_running_mean(ready) -> None:
    trainer, _ = ready(2)
    with torch.no_grad():
        for network, value in ((trainer.network, 1.0), (trainer.teacher, 0.0)):
            for tensor in network.parameters():
                tensor.fill_(value)
    for step, expected in enumerate((0.5, 2 / 3, 0.75, 0.8), start=1):
        trainer.iteration = step
        trainer.after_step()
        torch.testing.assert_close(weights(trainer.teacher), torch.full_like(weights(trainer.teacher), expected))


OFF = {"semi_weight": 0.0, "sharpening_weight": 0.0, "consistency_weight": 0.0}
ALL = ["supervised", "semi", "sharpening", "consistency"]
ROWS = [  # settings, terms, patches in the student's pass
    (OFF, ["supervised"], 2),
    ({**OFF, "semi_weight": 1.0, "mix": False}, ["supervised", "semi"], 2 + 4),
    ({**OFF, "semi_weight": 1.0}, ["supervised", "semi"], 2 + 4),
    ({"sharpening_weight": 0.0}, ["supervised", "semi", "consistency"], 2 + 4 + 2),
    ({"consistency_weight": 0.0}, ["supervised", "semi", "sharpening"], 2 + 4 + 2),
    ({"semi_weight": 0.0, "consistency_weight": 0.0}, ["supervised", "sharpening"], 2 + 2),
    ({"copies": 3}, ALL, 2 + 6 + 2),
    ({"scales": 1}, ["supervised", "semi", "sharpening"], 8),
    ({"temperature": 0.5, "teacher_mode": "eval", "deployed": "teacher"}, ALL, 8),
    ({"network": "vnet_multiscale"}, ALL, 8),
    ({"network": "vnet_multiscale", "preset": "code"}, ALL, 8),
    ({"network": "nnssl.networks.vnet.VNet"}, ["supervised", "semi", "sharpening", "consistency"], 8),
]


@pytest.mark.parametrize(
    ("config", "names", "patches"), ROWS, ids=[",".join(f"{k}={v}" for k, v in row[0].items()) for row in ROWS]
)
def test_every_ablation_trains(config, names: list[str], patches: int, ready) -> None:
    trainer, batch = ready(2, **config)
    learned, before = forwards_of(trainer.network), weights(trainer.network)
    terms = trainer.training_losses(batch)
    assert list(terms) == names
    assert len(learned[0][0]) == patches
    assert all(term.isfinite() for term in terms.values())
    trainer._optimise(torch.stack(list(terms.values())).sum())
    assert not torch.equal(weights(trainer.network), before)


def test_without_mixing_the_student_sees_the_copies(ready) -> None:
    trainer, batch = ready(2, mix=False)
    taught, learned = forwards_of(trainer.teacher), forwards_of(trainer.network)
    trainer.training_losses(batch)
    assert torch.equal(learned[0][0][2:6], taught[0][0])


@pytest.mark.parametrize(("scales", "factors"), [(4, (1.0, 1.0)), (1, (2.0,))])
def test_weights_of_the_scales(scales: int, factors: tuple[float, ...], ready) -> None:
    trainer, _ = ready(2, scales=scales)  # the tiny plan has two outputs
    assert trainer.segmentation_loss.scale_weights == factors


def test_noise_where_normalisation_leaves_other_deviations(make_tiny, make_trainer) -> None:
    folder = make_tiny(2)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    image = 30 * torch.randn(3, 1, 32, 32)
    found = {}
    for scheme in ("ZScoreNormalization", "NoNormalization"):
        plans["configurations"]["2d"]["normalization_schemes"] = [scheme]
        (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
        trainer = make_trainer("PLGDFTrainer", 2)
        trainer.initialize()
        found[scheme] = (trainer.add_noise(image) - image).abs().amax((1, 2, 3))
    assert found["ZScoreNormalization"].tolist() == pytest.approx([0.2] * 3, abs=1e-5)
    torch.testing.assert_close(found["NoNormalization"], 0.2 * image.std((1, 2, 3)))


@pytest.mark.parametrize("deployed", ["student", "teacher"])
@pytest.mark.parametrize("student", ["plan", "vnet_multiscale"])
def test_plans_of_the_run_build_the_deployed_network(student: str, deployed: str, make_trainer) -> None:
    config = {"network": student, "deployed": deployed}
    trainer = make_trainer("PLGDFTrainer", 2, epoch=2, num_iterations=2, config=config)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    entry = read_json(folder.parent / "plans.json")["configurations"]["2d"]["architecture"]
    assert entry["network_class_name"].endswith("PlainConvUNet" if student == "plan" else "VNetMultiscale")
    network = get_network_from_plans(*entry.values(), 1, 3, allow_init=False, deep_supervision=False)
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    network.load_state_dict(checkpoint["network_weights"])
    wanted = trainer.network if deployed == "student" else trainer.teacher
    image = torch.randn(1, 1, 16, 16)
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image), wanted.eval()(image))


def test_plans_that_were_given_are_not_changed(make_trainer) -> None:
    changed = make_trainer("PLGDFTrainer", 2, config={"network": "vnet_multiscale"}).plans_manager.plans
    again = make_trainer("PLGDFTrainer", 2).plans_manager.plans
    entries = [plans["configurations"]["2d"]["architecture"]["network_class_name"] for plans in (changed, again)]
    assert [entry.rpartition(".")[2] for entry in entries] == ["VNetMultiscale", "PlainConvUNet"]


def test_unknown_networks_are_errors_before_training(make_trainer) -> None:
    with pytest.raises(UsageError, match="network=vnet_multi is no network") as raised:
        make_trainer("PLGDFTrainer", 2, config={"network": "vnet_multi"})
    assert "vnet_multiscale" in raised.value.why


@pytest.mark.parametrize(
    "text", ["copies=0", "temperature=0", "mix_alpha=0", "scales=0", "preset=both", "optimizer=adam"]
)
def test_settings_have_ranges(text: str) -> None:
    with pytest.raises(UsageError, match="is not allowed"):
        config_with(PLGDFConfig, [text])


@pytest.mark.parametrize("mode", ["train", "bn_train_nodrop", "eval"])
def test_mode_of_the_teacher(mode: str, ready) -> None:
    trainer, _ = ready(2, network="vnet_multiscale", teacher_mode=mode)
    parts = {type(part).__name__: part.training for part in trainer.teacher.modules()}
    assert parts["BatchNorm2d"] == (mode != "eval")
    assert parts["Dropout2d"] == (mode == "train")
