from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from nnssl_trainers.frame.teacher_student import copy_to_cpu_async, set_teacher_mode


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes an initialised trainer with a teacher, and one batch of iteration 3."""

    def make(name: str = "MeanTeacherTrainer", **config):
        trainer = make_trainer(name, 2, num_iterations=8, config=config)
        trainer.initialize()
        trainer.set_training_mode()
        batch = trainer._move_to_device(next(trainer.get_dataloaders()[0]))
        return trainer, dataclasses.replace(batch, iteration=3)

    return make


def fill(network: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)


def test_modes_of_the_teacher() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Dropout2d(0.5))
    for mode, batch_norm, dropout in (("bn_train_nodrop", True, False), ("train", True, True), ("eval", False, False)):
        set_teacher_mode(network, mode)
        assert [module.training for module in network] == [mode != "eval", batch_norm, dropout, dropout]


def test_a_tensor_on_the_cpu_has_arrived() -> None:
    tensor = torch.arange(4)
    assert copy_to_cpu_async(tensor)() is tensor


def test_the_teacher_starts_as_the_student_and_never_learns_by_gradient(ready) -> None:
    trainer, batch = ready()
    pairs = zip(trainer.network.parameters(), trainer.teacher.parameters(), strict=True)
    assert all(torch.equal(student, teacher) for student, teacher in pairs)
    assert not any(parameter.requires_grad for parameter in trainer.teacher.parameters())
    assert not trainer.teach(batch.image_u_w).requires_grad


def test_the_teacher_follows_the_student(ready) -> None:
    trainer, _ = ready(ema_decay=0.75)
    fill(trainer.network, 1.0)
    fill(trainer.teacher, 0.0)
    for iteration, expected in ((1, 0.5), (9, 0.625)):  # the decay is 1/2 first, later 3/4
        trainer.iteration = iteration
        trainer.after_step()
        parameter = next(trainer.teacher.parameters())
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))


def test_one_pass_predicts_labelled_and_unlabelled_patches(ready) -> None:
    trainer, batch = ready()
    passes = []
    trainer.network.register_forward_pre_hook(lambda _, arguments: passes.append(len(arguments[0])))
    labelled, unlabelled = trainer.predict_together(batch.image_l, batch.image_u_s[:1])
    assert passes == [3]
    torch.testing.assert_close(labelled[0], trainer.network(batch.image_l)[0])
    torch.testing.assert_close(unlabelled[1], trainer.network(batch.image_u_s[:1])[1])


def test_weights_of_another_training_reach_the_teacher(ready, make_trainer, tmp_path) -> None:
    other, _ = ready()
    fill(other.teacher, 0.5)
    other.save_checkpoint(str(tmp_path / "weights.pth"))
    trainer = make_trainer("MeanTeacherTrainer", 2)
    trainer.load_pretrained(str(tmp_path / "weights.pth"))
    first = next(trainer.teacher.encoder.parameters())
    assert torch.equal(first, torch.full_like(first, 0.5))
    pairs = zip(trainer.network.parameters(), trainer.teacher.parameters(), strict=True)
    assert all(torch.equal(student, teacher) for student, teacher in pairs)


def test_the_teacher_continues_with_a_checkpoint(ready, make_trainer, tmp_path) -> None:
    stopped, _ = ready()
    fill(stopped.teacher, 0.5)
    stopped.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    continued = make_trainer("MeanTeacherTrainer", 2, num_iterations=8)
    continued.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert all(torch.equal(p, torch.full_like(p, 0.5)) for p in continued.teacher.parameters())
    assert not torch.equal(next(continued.network.parameters()), next(continued.teacher.parameters()))


def test_padding_is_background_and_small_components_go(ready) -> None:
    trainer, batch = ready()
    shape = batch.image_u_s.shape
    probs = torch.zeros(shape[0], 3, *shape[2:])
    probs[:, 0] = 0.5
    probs[:, 1, :6, :6] = probs[:, 1, 12:14, 12:14] = probs[:, 2, 8:10, 0:2] = 1.0
    mask = torch.ones(shape[0], 1, *shape[2:], dtype=torch.bool)
    mask[:, :, :, :2] = False
    found = trainer.pseudo_labels(probs, mask, True)()
    assert found.dtype == torch.int64
    assert found.sum() == shape[0] * 6 * 4
    everything = trainer.pseudo_labels(probs, mask, False)()
    assert everything.sum() == shape[0] * (6 * 4 + 4)


@pytest.mark.parametrize("regions", [False, True])
def test_a_class_that_the_teacher_never_labels_is_named_once_an_epoch(regions: bool, ready) -> None:
    trainer, batch = ready()
    trainer.label_manager._has_regions = regions
    labels = {"whole": [1, 2], "core": [2]} if regions else {"second": 2, "first": 1}
    trainer.dataset_json = {**trainer.dataset_json, "labels": {"background": 0, **labels, "ignore": 3}}
    assert trainer.epoch_warnings() == []
    probs = torch.zeros(len(batch.image_u_w), 2 if regions else 3, *batch.image_u_w.shape[2:])
    probs[:, 0 if regions else 1, :6, :6] = 1.0
    mask = torch.ones_like(probs[:, :1], dtype=torch.bool)
    for _ in range(2):
        trainer.pseudo_labels(probs, mask, True)()
    trainer.note_lost_classes()
    (warning,) = trainer.epoch_warnings()
    assert f"as {'core' if regions else 'second'}:" in warning
    assert trainer.epoch_values() == {"pseudo_share_1": 1.0, "pseudo_share_2": 0.0}
    trainer.note_lost_classes()
    assert trainer.epoch_warnings() == []
    assert trainer.epoch_values() == {}
    probs[:, -1, 6:] = 1.0
    trainer.pseudo_labels(probs, mask, False)()
    trainer.note_lost_classes()
    assert trainer.epoch_warnings() == []
