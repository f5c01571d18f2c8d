from __future__ import annotations

import pytest
import torch

from nnssl.config import config_with
from nnssl_trainers.methods.supervised import SupervisedConfig


@pytest.mark.parametrize("dim", [2, 3])
def test_the_only_term_is_nnunets_loss(dim: int, make_trainer) -> None:
    trainer = make_trainer("SupervisedTrainer", dim)
    trainer.initialize()
    raw = next(trainer.get_dataloaders()[0])
    assert set(raw) == {"labelled"}
    batch = trainer._move_to_device(raw)
    assert batch.image_u_w is batch.image_u_s is batch.mask_u is None
    terms = trainer.training_losses(batch)
    assert list(terms) == ["supervised"]
    assert torch.equal(terms["supervised"], trainer.loss(trainer.network(batch.image_l), batch.target_l))


def test_the_learning_rate_falls_every_iteration_as_nnunets_falls_every_epoch(make_trainer) -> None:
    trainer = make_trainer("SupervisedTrainer", 2, num_iterations=8)
    trainer.initialize()
    stream, _ = trainer.get_dataloaders()
    rates = []
    for _ in range(3):
        trainer.train_step(next(stream))
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01 * (1 - t / 8) ** 0.9 for t in range(3)])


def test_scans_without_labels_are_not_needed(make_trainer, make_tiny) -> None:
    folder = make_tiny(2)
    for file in (folder / "nnUNetPlans_2d_unlabelled").iterdir():
        file.unlink()
    trainer = make_trainer("SupervisedTrainer", 2)
    trainer.run_training()
    assert len(trainer.record.rows) == 2


def test_the_papers_settings_are_the_defaults() -> None:
    paper = config_with(SupervisedConfig, ["preset=paper"])
    assert paper.changes() == {"preset": "paper"}
    assert {**paper.to_dict(), "preset": "default"} == SupervisedConfig().to_dict()
