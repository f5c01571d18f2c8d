from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn
from torch.nn import functional

from nnssl.errors import StoppedBySignal, UsageError
from nnssl.ingredients.contrastive import nt_xent
from nnssl.ingredients.perturb import augment_patches
from nnssl.ingredients.thresholds import DynamicThresholdMap
from nnssl.training import checkpoints
from nnssl_trainers.parts.encoder_features import EncoderFeatures


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes an initialised DPTMTrainer and one batch, at iteration 4 of 8 (ramp-up over)."""

    def make(dim: int = 2, iteration: int = 4, **config):
        trainer = make_trainer("DPTMTrainer", dim, num_iterations=8, config=config)
        trainer.initialize()
        trainer.set_training_mode()
        batch = next(trainer.get_dataloaders()[0])
        trainer.iteration = iteration
        return trainer, trainer._move_to_device(batch)

    return make


def reference(trainer, batch, thresholds: DynamicThresholdMap, boxes: torch.Tensor | None) -> dict[str, float]:
    """Return the terms of equations 2 to 14, written out."""
    x_l, x_w, x_s, mask = batch.image_l, batch.image_u_w, batch.image_u_s, batch.mask_u
    with torch.no_grad():
        probs = trainer.teacher(x_w)[0].softmax(1)
    q, guess = probs.max(1, keepdim=True)
    thresholds.update(probs, boxes, mask)
    above = q > thresholds.thresholds(boxes, probs.shape[2:]).expand_as(probs).gather(1, guess)
    log_p = (trainer.network(x_s)[0] / 0.5).log_softmax(1).gather(1, guess)
    n = mask.sum()
    u = trainer.network.encoder(torch.cat([x_l, x_s]))[-1].flatten(2).mean(2)
    v = trainer.network.encoder(augment_patches(torch.cat([x_l, x_w])))[-1].flatten(2).mean(2)
    return {
        "supervised": trainer.loss(trainer.network(x_l), batch.target_l).item(),
        "pseudo_label": 0.5 * (-(q * above * mask * log_p).sum() / n).item(),
        "contrast": 0.1 * nt_xent(u, v, 0.1).item(),
    }


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("frame", ["image", "patch"])
def test_a_step_is_the_equations(dim: int, frame: str, ready) -> None:
    trainer, batch = ready(dim, map_frame=frame)
    assert batch.box_u.shape == (2, dim, 2)
    trainer.teacher.load_state_dict(trainer.new_network().state_dict())  # not the student
    thresholds = copy.deepcopy(trainer.threshold_map)
    assert thresholds.map.shape == ((24,) * dim if frame == "image" else (16,) * dim)
    assert (thresholds.map == 1 / 3).all()
    torch.manual_seed(2)
    terms = trainer.training_losses(batch)
    torch.manual_seed(2)
    expected = reference(trainer, batch, thresholds, batch.box_u if frame == "image" else None)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, abs=1e-4)
    assert terms["pseudo_label"] > 0
    assert torch.equal(trainer.threshold_map.map, thresholds.map)
    assert torch.equal(trainer.threshold_map.scale, thresholds.scale)
    assert (thresholds.map != 1 / 3).any()


def test_weights_rise_and_terms_with_weight_zero_are_left_out(ready) -> None:
    trainer, batch = ready()
    late = trainer.training_losses(batch)["pseudo_label"]
    trainer.threshold_map.load_state_dict(DynamicThresholdMap(3, (24, 24), 0.99).state_dict())
    early = trainer.training_losses(dataclasses.replace(batch, iteration=0))["pseudo_label"]
    assert (early / late).item() == pytest.approx(math.exp(-5), rel=1e-4)
    trainer, batch = ready(contrast_weight=0, pseudo_label_weight=0)
    assert set(trainer.training_losses(batch)) == {"supervised"}
    assert not trainer.network.encoder._forward_hooks


def test_the_encoder_sees_every_patch_once_and_every_copy_once(ready) -> None:
    trainer, batch = ready()
    seen: list[torch.Tensor] = []
    trainer.network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.training_losses(batch)
    assert [len(images) for images in seen] == [4, 4]
    assert torch.equal(seen[0], torch.cat([batch.image_l, batch.image_u_s]))
    assert not torch.equal(seen[1], torch.cat([batch.image_l, batch.image_u_w]))


def test_threshold_map_off_is_a_fixed_threshold(ready) -> None:
    for threshold, passes in ((0.0, True), (1.0, False)):
        trainer, batch = ready(threshold_map=False, fixed_threshold=threshold)
        loss = trainer.training_losses(batch)["pseudo_label"]
        assert (loss > 0) == passes
        assert torch.isfinite(loss)
        assert (trainer.threshold_map.map == threshold).all()
        assert (trainer.threshold_map.scale == 1).all()


@pytest.mark.parametrize(("switch", "temperature"), [("hard", 0.5), ("robust_entropy", 1.0)])
def test_hard_and_without_robust_entropy(switch: str, temperature: float, ready) -> None:
    config = {switch: switch == "hard", "threshold_map": False, "fixed_threshold": 0.0}
    trainer, batch = ready(**config)
    guess = trainer.teach(batch.image_u_w).argmax(1)
    losses = functional.cross_entropy(trainer.network(batch.image_u_s)[0] / temperature, guess, reduction="none")
    expected = 0.5 * losses[batch.mask_u[:, 0]].mean()
    assert trainer.training_losses(batch)["pseudo_label"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_cross_entropy_only(ready) -> None:
    trainer, batch = ready(ce_only=True)
    outputs = trainer.network(batch.image_l)
    scales = trainer.loss.weight_factors
    expected = sum(
        w * functional.cross_entropy(z, y[:, 0].long()) for w, z, y in zip(scales, outputs, batch.target_l, strict=True)
    )
    assert trainer.training_losses(batch)["supervised"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_padding_counts_nowhere(ready) -> None:
    trainer, batch = ready(map_frame="patch")
    keep = torch.zeros_like(batch.mask_u)
    keep[..., :8] = True
    trainer.training_losses(dataclasses.replace(batch, mask_u=keep))
    assert (trainer.threshold_map.map[:, :8] != 1 / 3).all()
    assert (trainer.threshold_map.map[:, 8:] == 1 / 3).all()
    nothing = trainer.training_losses(dataclasses.replace(batch, mask_u=torch.zeros_like(keep)))
    assert nothing["pseudo_label"].item() == 0.0


def with_regions(make_tiny) -> None:
    folder = make_tiny(2)
    content = json.loads((folder / "dataset.json").read_text())
    content |= {"labels": {"background": 0, "whole": [1, 2], "core": 1}, "regions_class_order": [2, 1]}
    (folder / "dataset.json").write_text(json.dumps(content))


def test_regions_are_two_classes_each(make_tiny, make_trainer) -> None:
    with_regions(make_tiny)
    trainer = make_trainer("DPTMTrainer", 2)
    trainer.initialize()
    assert trainer.threshold_map.scale.shape == (2,)
    weak, mask = torch.randn(2, 1, 16, 16), torch.ones(2, 1, 16, 16, dtype=torch.bool)
    boxes = torch.tensor([[[0.0, 0.5]] * 2, [[0.5, 1.0]] * 2])
    student = torch.randn(2, 2, 16, 16)
    loss = trainer.pseudo_label_loss(student, weak, mask, boxes)
    p = trainer.teach(weak)
    q, inside = torch.maximum(p, 1 - p), (p > 0.5).float()
    at = trainer.threshold_map.thresholds(boxes, (16, 16))
    above = q > torch.where(inside.bool(), at[:, 1:], at[:, :1])
    ce = functional.binary_cross_entropy_with_logits(student / 0.5, inside, reduction="none")
    assert loss.item() == pytest.approx((q * above * ce).mean().item(), rel=1e-5)


def test_deployed_network(ready) -> None:
    trainer, _ = ready()
    assert trainer.deployed is trainer.teacher
    trainer, _ = ready(deployed="student")
    assert trainer.deployed is trainer.network
    trainer.num_epochs = 1
    trainer.iteration = 0
    trainer.run_training()
    weights = checkpoints.load(Path(trainer.output_folder) / "checkpoint_final.pth")["network_weights"]
    assert all(torch.equal(weights[name], value) for name, value in trainer.network.state_dict().items())


@pytest.mark.parametrize("file", ["checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth"])
def test_every_checkpoint_keeps_the_threshold_map(file: str, ready) -> None:
    trainer, _ = ready()
    trainer.num_epochs, trainer.iteration = 1, 0
    trainer.run_training()
    kept = checkpoints.load(Path(trainer.output_folder) / file)["nnssl_semi"]["threshold_map"]
    assert (kept["map"] != 1 / 3).any()
    assert torch.equal(kept["map"], trainer.threshold_map.map)
    assert torch.equal(kept["scale"], trainer.threshold_map.scale)


def test_gradients_of_the_projection_are_clipped_with_the_students(ready) -> None:
    trainer, _ = ready(projection_dim=5)
    learned = [*trainer.network.parameters(), *trainer.projection.parameters()]
    trainer._optimise(1e4 * torch.stack([p.sum() for p in learned]).sum())
    norm = torch.stack([p.grad.norm() for p in learned]).norm()
    assert norm.item() == pytest.approx(12, rel=1e-4)


def test_projection_learns_with_the_student_and_is_not_deployed(ready) -> None:
    trainer, batch = ready(projection_dim=5)
    shapes = [tuple(parameter.shape) for parameter in trainer.projection.parameters()]
    assert shapes == [(8, 8), (8,), (5, 8), (5,)]
    before = [parameter.clone() for parameter in trainer.projection.parameters()]
    trainer.iteration = 0
    trainer.train_step(next(trainer.get_dataloaders()[0]))
    after = list(trainer.projection.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    assert len(rates) == 1
    assert not any("projection" in name for name in trainer.deployed.state_dict())
    term = trainer.training_losses(batch)["contrast"]
    trainer.network.zero_grad()
    term.backward()
    assert all(parameter.grad is None for parameter in trainer.network.decoder.seg_layers.parameters())
    assert all(parameter.grad is not None for parameter in trainer.network.encoder.parameters())


@pytest.mark.parametrize("stop_after", [2, 3])
def test_stopped_and_continued_is_uninterrupted_bit_by_bit(stop_after: int, make_trainer) -> None:
    run = {"num_iterations": 6, "seed": 5, "config": {"projection_dim": 4}}
    whole = make_trainer("DPTMTrainer", 2, **run)
    whole.run_training()
    expected = {name: value.clone() for name, value in whole.state()["student"].items()}
    first = make_trainer("DPTMTrainer", 2, **run)
    step = first.train_step

    def step_and_stop(batch):
        result = step(batch)
        if first.iteration == stop_after:
            first.request_stop()
        return result

    first.train_step = step_and_stop
    with pytest.raises(StoppedBySignal):
        first.run_training()
    torch.manual_seed(999)
    second = make_trainer("DPTMTrainer", 2, **run)
    second.load_checkpoint(str(Path(second.output_folder) / "checkpoint_latest.pth"))
    assert torch.equal(second.threshold_map.map, first.threshold_map.map)
    assert torch.equal(second.threshold_map.scale, first.threshold_map.scale)
    second.run_training()
    assert all(torch.equal(expected[name], value) for name, value in second.network.state_dict().items())
    for part in ("teacher", "threshold_map", "projection"):
        ours, theirs = getattr(second, part).state_dict(), getattr(whole, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (second.threshold_map.map != 1 / 3).any()


def test_a_network_without_encoder_is_an_error_at_the_start(make_trainer) -> None:
    network = "nnssl.networks.cce_pair.CCEPair"
    with pytest.raises(UsageError, match="CCEPair has no encoder") as error:
        make_trainer("DPTMTrainer", 2, config={"network": network}).initialize()
    assert "contrast_weight=0" in error.value.run
    trainer = make_trainer("DPTMTrainer", 2, config={"network": network, "contrast_weight": 0})
    trainer.initialize()
    terms = trainer.training_losses(trainer._move_to_device(next(trainer.get_dataloaders()[0])))
    assert set(terms) == {"supervised", "pseudo_label"}


def small_unet(residual: bool) -> nn.Module:
    blocks = {"n_blocks_per_stage" if residual else "n_conv_per_stage": [1, 1, 1]}
    return (ResidualEncoderUNet if residual else PlainConvUNet)(
        input_channels=1,
        n_stages=3,
        features_per_stage=[4, 6, 8],
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=[1, 2, 2],
        num_classes=2,
        n_conv_per_stage_decoder=[1, 1],
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
        **blocks,
    )


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_features_of_the_own_forward_pass(residual: bool, compiled: bool) -> None:
    network, image = small_unet(residual), torch.randn(3, 1, 16, 16)
    features = EncoderFeatures(network)
    call = torch.compile(network, backend="eager") if compiled else network
    for _ in range(2):  # a compiled network's hook runs in every pass, not only in the one that is traced
        image = image + 1
        call(image)
        latest = features.take()
        assert latest.shape == (3, features.width) == (3, 8)
        plain = copy.deepcopy(network.encoder)
        plain._forward_hooks.clear()
        torch.testing.assert_close(latest, plain(image)[-1].mean((2, 3)))
    assert latest.requires_grad
    latest.sum().backward()
    assert all(parameter.grad is not None for parameter in network.encoder.parameters())
