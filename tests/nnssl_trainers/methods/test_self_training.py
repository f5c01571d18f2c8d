from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from nnssl.labelling.store import UNSURE
from nnssl.training import checkpoints
from nnssl_trainers.frame.batch import as_list
from tests.nnssl_trainers.frame.conftest import same

NO_MIX = {"cutmix_probability": 0.0}
STAGED = {"num_iterations": 12, "epoch": 4, "staged": True}


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes a trainer, and a batch whose pseudo-labels have all classes and unsure voxels."""

    def make(dim: int = 2, **config):
        trainer = make_trainer("SelfTrainingTrainer", dim, config=config)
        trainer.initialize()
        stream, _ = trainer.get_dataloaders()
        batch = trainer._move_to_device(next(stream))
        stream.close()
        trainer.lost_classes = []
        torch.manual_seed(1)
        target = torch.randint(0, 3, batch.target_u.shape, dtype=torch.int16)
        target[:, :, :3], target[:, :, 5:9] = -1, UNSURE
        return trainer, dataclasses.replace(batch, target_u=target)

    return make


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("dim", [2, 3])
def test_a_step_is_the_weighted_mean_of_two_losses_of_nnunet(dim: int, weight: float, ready) -> None:
    trainer, batch = ready(dim, **NO_MIX, unlabelled_weight=weight)
    terms = trainer.training_losses(batch)
    outputs = as_list(trainer.network(torch.cat([batch.image_l, batch.image_u_s])))
    count = len(batch.image_l)
    labelled = trainer.loss([z[:count] for z in outputs], batch.target_l)
    torch.testing.assert_close(terms["supervised"], labelled / (1 + weight))
    counted = (batch.target_u >= 0) & (batch.target_u != UNSURE)
    labels = torch.where(counted, batch.target_u, 0).long()
    pseudo = trainer.pseudo_loss([z[count:] for z in outputs], labels, counted.float())
    torch.testing.assert_close(terms["pseudo"], weight * pseudo / (1 + weight))


def test_ignored_voxels_give_no_gradient(ready) -> None:
    trainer, batch = ready(**NO_MIX)
    seen = []
    trainer.pseudo_loss = lambda outputs, target, mask, loss=trainer.pseudo_loss: (
        [z.retain_grad() for z in outputs],
        seen.append((outputs[0], mask)),
        loss([outputs[0]], target, mask),
    )[-1]
    trainer.training_losses(batch)["pseudo"].backward()
    logits, mask = seen[0]
    ignored = (batch.target_u < 0) | (batch.target_u == UNSURE)
    assert torch.equal(mask.bool(), ~ignored)
    gradient = logits.grad.abs().sum(1, keepdim=True)
    assert not gradient[ignored].any()
    assert (gradient[~ignored] > 0).float().mean() > 0.9


def test_weight_zero_is_the_regime_control(ready) -> None:
    trainer, batch = ready(unlabelled_weight=0.0)
    terms = trainer.training_losses(batch)
    terms["pseudo"].backward()
    assert not any(p.grad is not None and p.grad.any() for p in trainer.network.parameters())
    torch.testing.assert_close(terms["supervised"], trainer.loss(trainer.network(batch.image_l), batch.target_l))


def test_mixed_patches_move_image_labels_and_mask_together(ready) -> None:
    trainer, batch = ready(cutmix_probability=1.0)
    labels, counted = batch.stored_labels
    image = 10.0 * labels + counted
    batch = dataclasses.replace(batch, image_u_s=image)
    mixed, target, mask = trainer.mixed_patches(batch)
    assert torch.equal(mixed, 10 * target + mask)
    assert not torch.equal(mixed, image)


def test_a_class_that_no_pseudo_label_has_is_not_unlearned(ready) -> None:
    trainer, batch = ready(**NO_MIX)
    trainer.lost_classes = [False, True]
    target = torch.where(batch.target_u == 2, 0, batch.target_u)
    trainer.training_losses(dataclasses.replace(batch, target_u=target))["pseudo"].backward()
    head = trainer.network.decoder.seg_layers[-1].weight.grad
    assert not head[2].any()
    assert head[:2].any()


def test_regions_are_learned_as_regions(make_trainer, make_tiny) -> None:
    folder = make_tiny(2)
    content = json.loads((folder / "dataset.json").read_text())
    content |= {"labels": {"background": 0, "whole": [1, 2], "core": 1}, "regions_class_order": [2, 1]}
    (folder / "dataset.json").write_text(json.dumps(content))
    trainer = make_trainer("SelfTrainingTrainer", 2, config=NO_MIX)
    trainer.initialize()
    labels = torch.tensor([[[[0, 1], [2, UNSURE]]]])
    view = torch.zeros(1, 1, 2, 2)
    batch = trainer._move_to_device(
        {
            "labelled": {"data": view, "target": view},
            "unlabelled": {"data": torch.cat([view, view], 1), "target": labels},
        }
    )
    _, target, counted = trainer.mixed_patches(batch)
    assert target.tolist() == [[[[0, 1], [1, 0]], [[0, 1], [0, 0]]]]
    assert counted.tolist() == [[[[1, 1], [1, 0]]]]
    assert trainer.pseudo_loss.regions


def test_the_stages_follow_each_other(make_trainer) -> None:
    trainer = make_trainer("SelfTrainingTrainer", 2, **STAGED, config={"ready_dice": 0.0, "finetune_share": 0.34})
    seen = {}
    losses = trainer.losses_of_step
    trainer.losses_of_step = lambda batch: seen.setdefault(trainer.iteration, losses(batch))
    trainer.run_training()
    pseudo = [iteration for iteration, terms in seen.items() if "pseudo" in terms]
    assert list(seen) == list(range(12))
    assert pseudo == [6, 7, 8, 9]
    assert trainer.finetune_begin == 10
    assert trainer.unlabelled_from == 6
    factors = [trainer.learning_rate_factors(i)[0] for i in range(12)]
    assert factors[:6] == factors[6:] == [(1 - i / 6) ** 0.9 for i in range(6)]


@pytest.mark.parametrize("restart", [True, False])
def test_the_last_stage_starts_from_new_weights_of_the_next_seed(restart: bool, make_trainer) -> None:
    config = {"ready_dice": 0.0, "restart_weights": restart}
    trainer = make_trainer("SelfTrainingTrainer", 2, **STAGED, seed=3, config=config)
    trainer.initialize()
    trainer.iteration, trainer.current_epoch = 6, 1
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(0.1)
    trained = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    trainer.begin_second_stage()
    fresh = make_trainer("SelfTrainingTrainer", 2, **STAGED, seed=4)
    fresh.initialize()
    assert same(trainer.network.state_dict(), fresh.network.state_dict() if restart else trained)
    file = Path(trainer.output_folder) / "checkpoint_supervised.pth"
    assert same(checkpoints.load(file)[checkpoints.KEY]["students"][0], trained)


def test_start_from_labels_with_the_weights_of_that_run(make_trainer) -> None:
    supervised = make_trainer("SupervisedTrainer", 2, num_iterations=2)
    supervised.run_training()
    file = Path(supervised.output_folder) / "checkpoint_final.pth"
    trainer = make_trainer("SelfTrainingTrainer", 2, staged=True, config={"ready_dice": 0.0}, start_from="there")
    trainer.load_start(str(file))
    labelled_by = []
    predict = trainer.predict_scans

    def note(*arguments):
        labelled_by.append({key: value.clone() for key, value in trainer.network.state_dict().items()})
        predict(*arguments)

    trainer.predict_scans = note
    trainer.run_training()
    assert same(labelled_by[0], checkpoints.load(file)["network_weights"])
    assert trainer.unlabelled_from == 0
    report = json.loads((trainer.pseudo_folder / "cases.json").read_text())
    assert {entry["source"] for entry in report.values()} == {"there"}
