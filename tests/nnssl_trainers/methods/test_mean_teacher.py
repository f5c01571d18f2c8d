from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from nnssl_trainers.frame import data_streams
from nnssl_trainers.frame.architecture import unwrap


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes an initialised MeanTeacherTrainer with one batch, at iteration 3 of 10."""

    def make(dim: int = 2, **config):
        trainer = make_trainer("MeanTeacherTrainer", dim, num_iterations=10, config=config)
        trainer.initialize()
        trainer.set_training_mode()
        batch = trainer._move_to_device(next(trainer.get_dataloaders()[0]))
        return trainer, dataclasses.replace(batch, iteration=3)

    return make


@pytest.mark.parametrize("dim", [2, 3])
def test_the_step_is_the_papers_cost(dim: int, ready) -> None:
    trainer, batch = ready(dim, consistency_weight=2.0)
    with torch.no_grad():
        for parameter in trainer.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # a teacher that differs from the student
    batch.mask_u[:, :, :3] = False
    terms = trainer.training_losses(batch)
    assert list(terms) == ["supervised", "consistency"]
    outputs = trainer.network(torch.cat([batch.image_l, batch.image_u_s]))
    labelled = [z[: len(batch.image_l)] for z in outputs]
    torch.testing.assert_close(terms["supervised"], trainer.loss(labelled, batch.target_l))
    student = outputs[0][len(batch.image_l) :].softmax(1)
    teacher = trainer.teacher(batch.image_u_w)[0].softmax(1)
    kept = batch.mask_u.expand_as(student)
    rampup = 2.0 * math.exp(-5 * (1 - 3 / (0.4 * 10)) ** 2)
    torch.testing.assert_close(terms["consistency"], rampup * (student - teacher).square()[kept].mean())
    assert terms["consistency"] > 0


def test_the_consistency_teaches_the_student_alone(ready) -> None:
    trainer, batch = ready()
    with torch.no_grad():
        for parameter in trainer.teacher.parameters():
            parameter.add_(0.05)
    trainer.training_losses(batch)["consistency"].backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trainer.network.parameters())
    assert all(parameter.grad is None for parameter in trainer.teacher.parameters())


def test_the_teacher_is_a_running_mean_first_and_an_exponential_one_later(ready) -> None:
    trainer, _ = ready(ema_decay=0.9)
    with torch.no_grad():
        for network, value in ((trainer.network, 1.0), (trainer.teacher, 0.0)):
            for parameter in network.parameters():
                parameter.fill_(value)
    for iteration, decay in ((1, 0.5), (2, 2 / 3), (500, 0.9)):
        before = next(trainer.teacher.parameters()).detach().clone()
        trainer.iteration = iteration
        trainer.after_step()
        after = next(trainer.teacher.parameters()).detach()
        torch.testing.assert_close(after, decay * before + (1 - decay))


@pytest.mark.parametrize("deployed", ["teacher", "student"])
def test_the_deployed_network_is_the_one_that_is_named(deployed: str, ready) -> None:
    trainer, _ = ready(deployed=deployed)
    wanted = trainer.teacher if deployed == "teacher" else trainer.network
    assert unwrap(trainer.deployed) is unwrap(wanted)


@pytest.mark.parametrize(("given", "expected"), [({}, 0.5), ({"strong_probability": 1.0}, 1.0)])
def test_the_strong_view_has_the_probability_of_the_setting(given, expected, make_trainer, monkeypatch) -> None:
    asked = []
    original = data_streams.two_views
    monkeypatch.setattr(data_streams, "two_views", lambda t, p, n: asked.append(p) or original(t, p, n))
    trainer = make_trainer("MeanTeacherTrainer", 2, config=given)
    trainer.initialize()
    batch = trainer._move_to_device(next(trainer.get_dataloaders()[0]))
    assert asked == [expected]
    assert not torch.equal(batch.image_u_w, batch.image_u_s)


def test_noise_on_unlabelled_images_is_the_same_for_student_and_teacher(ready) -> None:
    trainer, batch = ready(noise_std=0.2)
    seen: dict[str, torch.Tensor] = {}
    for name in ("network", "teacher"):
        hook = lambda _, images, name=name: seen.setdefault(name, images[0])  # noqa: E731
        getattr(trainer, name).register_forward_pre_hook(hook)
    trainer.training_losses(batch)
    noise = seen["teacher"] - batch.image_u_w
    assert 0.15 < noise.std().item() < 0.25
    torch.testing.assert_close(seen["network"][2:] - batch.image_u_s, noise, atol=1e-5, rtol=0)
    assert torch.equal(seen["network"][:2], batch.image_l)


def test_without_weight_the_step_is_the_supervised_one(ready) -> None:
    trainer, batch = ready(consistency_weight=0.0)
    assert trainer.training_losses(batch)["consistency"] == 0
