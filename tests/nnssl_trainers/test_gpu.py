"""Half precision, torch.compile and memory on a CUDA device."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from nnssl.planning.memory import relative_activations
from nnssl.registry import METHODS
from nnssl.training.checkpoints import load

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
both = pytest.mark.parametrize(("name", "dim"), [(name, dim) for name in METHODS for dim in (2, 3)])


@both
@pytest.mark.parametrize("compiled", ["f", "t"])
def test_a_run_in_half_precision(name: str, dim: int, compiled: str, make_trainer, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_compile", compiled)
    trainer = make_trainer(name, dim, device="cuda")
    trainer.run_training()
    checkpoint = load(Path(trainer.output_folder) / "checkpoint_final.pth")
    assert all(torch.isfinite(value).all() for value in checkpoint["network_weights"].values())
    assert not any(key.startswith(("_orig_mod", "module")) for key in checkpoint["network_weights"])
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in trainer.record.rows)


@both
def test_a_step_never_waits_for_the_device(name: str, dim: int, make_trainer) -> None:
    trainer = make_trainer(name, dim, device="cuda")
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    trainer.train_step(batch)
    step = max(1, getattr(trainer, "pretrain_iterations", 0))  # DSMT-Net's self-training
    terms = dataclasses.replace(trainer._move_to_device(batch), iteration=step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.training_losses(terms)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_stopped_and_continued_on_the_device(make_trainer) -> None:
    first = make_trainer("DSMTTrainer", device="cuda")
    first.on_train_end = lambda: None
    first.run_training()
    second = make_trainer("DSMTTrainer", device="cuda")
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    for part in ("network", "network2", "teacher"):
        ours, theirs = getattr(first, part), getattr(second, part)
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert second.grad_scaler.state_dict() == first.grad_scaler.state_dict()


@pytest.mark.parametrize(("dim", "patch"), [(2, 256), (3, 64)])
def test_peak_memory_is_what_planning_predicts(dim: int, patch: int, make_tiny, make_trainer) -> None:
    folder = make_tiny(dim, [patch] * dim, features_per_stage=[32, 64, 128], n_conv_per_stage=[2, 2, 2])
    plan = json.loads((folder / "nnUNetPlans.json").read_text())["configurations"]["2d" if dim == 2 else "3d_fullres"]
    peaks = {}
    for name in ("SupervisedTrainer", "DSMTTrainer"):
        trainer = make_trainer(name, dim, epoch=250, num_iterations=8, device="cuda")
        trainer.initialize()
        trainer.set_training_mode()
        batch = next(trainer.get_dataloaders()[0])
        trainer.iteration = 4
        trainer.train_step(batch)
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        trainer.train_step(batch)
        peaks[name] = torch.cuda.max_memory_allocated() - held
        del trainer
    method = METHODS["DSMTTrainer"]
    divisor = method.activations + relative_activations(plan, method.networks, 1, 3)
    assert peaks["DSMTTrainer"] / peaks["SupervisedTrainer"] == pytest.approx(divisor, rel=0.15)
