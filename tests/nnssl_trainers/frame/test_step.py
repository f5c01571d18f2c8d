from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes an initialised trainer and its first raw batch."""

    def make(name: str = "SupervisedTrainer", **run):
        trainer = make_trainer(name, 2, **run)
        trainer.initialize()
        trainer.set_training_mode()
        return trainer, next(trainer.get_dataloaders()[0])

    return make


def weights(trainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])


def gradient_norm(trainer) -> float:
    return torch.cat([p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None]).norm().item()


def test_a_step_minimises_the_sum_of_the_terms(ready) -> None:
    trainer, raw = ready(config={"learning_rate": 0.001, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False})
    before, seen = weights(trainer), []
    trainer.training_losses = lambda batch: {
        "first": next(trainer.network.parameters()).sum(),
        "second": 2 * next(trainer.network.parameters()).sum(),
    }
    trainer.after_step = lambda: seen.append(trainer.iteration)
    result = trainer.train_step(raw)
    changed = next(trainer.network.parameters()).numel()
    moved = before - weights(trainer)
    scale = min(1.0, 12 / (3 * changed**0.5))  # the norm of the gradient is clipped to 12
    torch.testing.assert_close(moved[:changed], torch.full((changed,), 0.001 * 3 * scale))
    assert not moved[changed:].any()
    torch.testing.assert_close(result["loss"], 3 * before[:changed].sum())
    assert not result["loss"].requires_grad
    assert (seen, trainer.iteration) == ([1], 1)
    torch.testing.assert_close(trainer._terms["second"], 2 * before[:changed].sum())


@pytest.mark.parametrize(("factor", "expected"), [(1e-3, None), (1e4, 12.0)])
def test_the_norm_of_large_gradients_is_clipped(factor: float, expected: float | None, ready) -> None:
    trainer, raw = ready()
    batch = trainer._move_to_device(raw)
    loss = factor * trainer.training_losses(batch)["supervised"]
    loss.backward(retain_graph=True)
    unclipped = gradient_norm(trainer)
    for parameter in trainer.network.parameters():
        parameter.grad = None
    trainer._optimise(loss)
    assert gradient_norm(trainer) == pytest.approx(unclipped if expected is None else expected, rel=1e-4)


def test_a_batch_arrives_as_views_mask_and_labels(ready) -> None:
    trainer, raw = ready("MeanTeacherTrainer")
    raw["unlabelled"]["target"][:, :, :4] = -1  # nnU-Net's mark of padding
    batch = trainer._move_to_device(raw)
    assert torch.equal(torch.cat([batch.image_u_w, batch.image_u_s], 1), raw["unlabelled"]["data"])
    assert batch.mask_u.dtype == torch.bool
    assert not batch.mask_u[:, :, :4].any()
    assert batch.mask_u[:, :, 4:].all()
    assert [part.shape[2:] for part in batch.target_l] == [part.shape[2:] for part in raw["labelled"]["target"]]
    assert batch.iteration == 0
    assert batch.box_u is None


def test_methods_that_need_places_get_boxes(ready) -> None:
    trainer, raw = ready("DPTMTrainer")
    assert torch.equal(trainer._move_to_device(raw).box_u, raw["unlabelled"]["boxes"])


def test_supervised_loss_of_all_outputs_or_of_the_finest(ready) -> None:
    trainer, raw = ready()
    batch = trainer._move_to_device(raw)
    outputs = trainer.network(batch.image_l)
    assert torch.equal(trainer.supervised_loss(outputs, batch), trainer.loss(outputs, batch.target_l))
    finest = trainer.loss.loss(outputs[0], batch.target_l[0])
    assert torch.equal(trainer.supervised_loss(outputs[:1], batch), finest)
    rounded = outputs[0].half()
    assert torch.equal(trainer.supervised_loss([rounded], batch), trainer.loss.loss(rounded.float(), batch.target_l[0]))


@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_are_softmax_or_sigmoid_in_full_precision(regions: bool, ready) -> None:
    trainer, _ = ready()
    trainer.label_manager._has_regions = regions
    logits = torch.randn(1, 3, 2, 2).half()
    expected = logits.float().sigmoid() if regions else logits.float().softmax(1)
    assert torch.equal(trainer.probabilities(logits), expected)


def test_precision_of_a_step(make_trainer) -> None:
    assert isinstance(make_trainer("SupervisedTrainer", 2).precision(), contextlib.nullcontext)
    with make_trainer("SupervisedTrainer", 2, bf16=True).precision():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
