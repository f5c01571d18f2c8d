from __future__ import annotations

import dataclasses

import pytest
import torch

from nnssl.errors import UsageError
from nnssl.ingredients.supervised import masked_dice
from nnssl_trainers.frame.batch import as_list
from nnssl_trainers.methods.fixmatch import FixMatchConfig

NO_MIX = {"cutmix_probability": 0.0, "flips": False}


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes a trainer, and a batch whose ramp-up has reached 1."""

    def make(dim: int = 2, iteration: int = 6, **config):
        trainer = make_trainer("FixMatchTrainer", dim, config=config)
        trainer.initialize()
        trainer.set_training_mode()
        with torch.no_grad():
            for name, parameter in trainer.teacher.named_parameters():  # a teacher that differs from the student
                parameter.add_(0.1 * torch.randn_like(parameter))
                if "seg_layers" in name and name.endswith("bias"):
                    parameter.zero_()  # so that it finds every class
        batch = trainer._move_to_device(next(trainer.get_dataloaders()[0]))
        batch.mask_u[:, :, :3] = False
        return trainer, dataclasses.replace(batch, iteration=iteration)

    return make


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_default_step_is_the_mean_of_two_losses_of_nnunet(dim: int, weight: float, ready) -> None:
    trainer, batch = ready(dim, **NO_MIX, unlabelled_weight=weight)
    terms = trainer.training_losses(batch)
    outputs = trainer.network(torch.cat([batch.image_l, batch.image_u_s]))
    count = len(batch.image_l)
    labelled = trainer.loss([z[:count] for z in outputs], batch.target_l)
    torch.testing.assert_close(terms["supervised"], labelled / (1 + weight))
    labels = trainer.teacher(batch.image_u_w)[0].argmax(1, keepdim=True)
    assert len(labels.unique()) > 1
    pseudo = trainer.pseudo_loss([z[count:] for z in outputs], labels, batch.mask_u)
    torch.testing.assert_close(terms["pseudo"], weight * pseudo / (1 + weight))


def test_the_weight_of_pseudo_labels_rises_over_a_tenth_of_the_stage(ready) -> None:
    trainer, batch = ready(**NO_MIX, rampup_share=0.5)
    early = trainer.training_losses(dataclasses.replace(batch, iteration=0))
    late = trainer.training_losses(dataclasses.replace(batch, iteration=3))
    w = torch.tensor(-5.0).exp()
    torch.testing.assert_close(early["pseudo"], late["pseudo"] * 2 * w / (1 + w))
    torch.testing.assert_close(early["supervised"], late["supervised"] * 2 / (1 + w))


def test_weight_zero_leaves_nnunets_loss_and_no_gradient_from_unlabelled_patches(ready) -> None:
    trainer, batch = ready(unlabelled_weight=0.0)
    terms = trainer.training_losses(batch)
    assert terms["pseudo"] == 0
    torch.testing.assert_close(terms["supervised"], trainer.loss(trainer.network(batch.image_l), batch.target_l))
    terms["pseudo"].backward()
    assert not any(p.grad is not None and p.grad.any() for p in trainer.network.parameters())


@pytest.mark.parametrize("thresholds", [{"threshold": 0.6}, {"class_thresholds": "0.9,0.4,0.5"}])
def test_voxels_below_the_threshold_and_padding_do_not_count(thresholds, ready) -> None:
    trainer, batch = ready(**thresholds)
    labels, counted = trainer.pseudo_labels_of(batch.image_u_w, batch.mask_u)
    probs = trainer.teacher(batch.image_u_w)[0].softmax(1)
    confidence, guess = probs.max(1, keepdim=True)
    least = torch.tensor([0.9, 0.4, 0.5] if "class_thresholds" in thresholds else [0.6] * 3)
    expected = (confidence >= least[guess]) & batch.mask_u
    assert torch.equal(labels, guess)
    assert torch.equal(counted.bool(), expected)
    assert 0 < expected.float().mean() < 1


def test_wrong_number_of_class_thresholds(make_trainer) -> None:
    trainer = make_trainer("FixMatchTrainer", 2, config={"class_thresholds": "0.9,0.4"})
    with pytest.raises(UsageError, match="2 numbers for 3 classes"):
        trainer.initialize()


@pytest.mark.parametrize("dim", [2, 3])
def test_mix_and_flips_move_image_labels_and_mask_together(dim: int, ready) -> None:
    trainer, batch = ready(dim, cutmix_probability=1.0, turns=True)
    labels = torch.randint(0, 3, batch.mask_u.shape)
    image = labels.float() * 10 + batch.mask_u.float()
    mixed, moved_labels, moved_mask = trainer.mix_and_move(image, labels, batch.mask_u.float())
    assert torch.equal(mixed, moved_labels * 10 + moved_mask)
    assert not torch.equal(mixed, image)
    if len(image) > 1:
        first = {float(v) for v in image[0].flatten()}
        assert len(first) > 1


def test_regions_use_the_sigmoid_and_all_regions_must_be_sure(ready) -> None:
    trainer, batch = ready(threshold=0.6)
    trainer.label_manager._has_regions = True
    trainer.dataset_json = {**trainer.dataset_json, "labels": {"background": 0, "a": [1, 2], "b": [2], "c": [3]}}
    labels, counted = trainer.pseudo_labels_of(batch.image_u_w, batch.mask_u)
    probs = trainer.teacher(batch.image_u_w)[0].sigmoid()
    assert torch.equal(labels, (probs >= 0.5).long())
    sure = (torch.maximum(probs, 1 - probs) >= 0.6).all(1, keepdim=True)
    assert torch.equal(counted.bool(), sure & batch.mask_u)


def test_plain_is_one_loss_over_both_kinds_of_patches(ready) -> None:
    trainer, batch = ready(preset="plain", supervised_share=0.0, flips=False, turns=False)
    terms = trainer.training_losses(batch)
    assert list(terms) == ["joint"]
    labels = trainer.network(batch.image_u_s)[0].argmax(1, keepdim=True)
    outputs = trainer.network(torch.cat([batch.image_l, batch.image_u_s]))
    known = batch.target_l[0] if isinstance(batch.target_l, list) else batch.target_l
    mask = torch.cat([torch.ones_like(batch.mask_u), batch.mask_u])
    torch.testing.assert_close(terms["joint"], trainer.pseudo_loss(outputs, torch.cat([known, labels]), mask))


def test_unimatch_weighs_its_four_streams_like_the_paper(ready) -> None:
    trainer, batch = ready(preset="unimatch", cutmix_probability=0.0, feature_dropout=1e-9, threshold=0.4)
    assert len(batch.strong_views) == 2
    assert not torch.equal(*batch.strong_views)
    terms = trainer.training_losses(batch)
    probs = trainer.network(batch.image_u_w)[0].softmax(1)
    confidence, guess = probs.max(1, keepdim=True)
    counted = (confidence >= 0.4) & batch.mask_u
    one_hot = guess == torch.arange(3).view(-1, 1, 1)
    views = [as_list(trainer.network(x))[0].softmax(1) for x in (*batch.strong_views, batch.image_u_w)]
    together = masked_dice(
        torch.cat(views[:2]), one_hot.repeat(2, 1, 1, 1), counted.repeat(2, 1, 1, 1), "squared_batch", epsilon=1e-5
    )
    perturbed = masked_dice(views[2], one_hot, counted, "squared_batch", epsilon=1e-5)
    torch.testing.assert_close(terms["pseudo"], 0.5 * (0.5 * together + 0.5 * perturbed))


def test_dropped_features_change_the_outputs_and_reach_encoder_and_decoder(ready) -> None:
    trainer, batch = ready(preset="unimatch")
    outputs = trainer.drop_features(batch.image_u_w)
    assert not torch.allclose(outputs[0], trainer.network(batch.image_u_w)[0])
    outputs[0].sum().backward()
    reached = {
        name.split(".")[0] for name, p in trainer.network.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert reached == {"encoder", "decoder"}


def test_a_class_that_the_teacher_lost_gets_no_loss_against_it(ready) -> None:
    trainer, batch = ready(**NO_MIX)
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    assert trainer.without_lost_classes(logits) is logits
    trainer.lost_classes = [False, True]
    target = torch.randint(0, 2, (2, 1, 8, 8))
    loss = trainer.pseudo_loss([trainer.without_lost_classes(logits)], target, torch.ones_like(target))
    loss.backward()
    assert not logits.grad[:, 2].any()
    assert logits.grad[:, :2].any()
    trainer.lost_classes = []
    trainer.taught_voxels = torch.tensor([5, 0])
    trainer.note_lost_classes()
    assert trainer.lost_classes == [False, True]
    assert trainer.taught_voxels is None
    trainer.training_losses(batch)
    assert trainer.taught_voxels is not None


@pytest.mark.parametrize("text", ["a,b", "nan,0.5", "0.5,2", ""])
def test_thresholds_that_are_no_shares_are_refused_with_the_settings(text: str) -> None:
    with pytest.raises(UsageError, match="class_thresholds"):
        FixMatchConfig(class_thresholds=text)
