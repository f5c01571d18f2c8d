"""What every registered method must keep; a newcomer to the registry is tested without a word here."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.config import config_with, format_value
from nnssl.registry import METHODS
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.batch import as_list
from nnssl_trainers.frame.stored_labels import StoredLabelsTrainer

both = pytest.mark.parametrize(("name", "dim"), [(name, dim) for name in METHODS for dim in (2, 3)])
every = pytest.mark.parametrize("name", METHODS)


@every
def test_class_keeps_nnunets_contract(name: str) -> None:
    cls = METHODS[name].load()
    assert list(inspect.signature(cls.__init__).parameters) == list(
        inspect.signature(nnUNetTrainer.__init__).parameters
    )
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert METHODS[name].takes_pseudo_labels == issubclass(cls, StoredLabelsTrainer)
    source = Path(inspect.getsourcefile(cls)).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 200
    assert "cuda" not in source
    assert "torch.save" not in source


@every
def test_config_round_trip_and_symbols(name: str) -> None:
    cls = METHODS[name].load().config_class
    default = cls()
    assert config_with(cls, default.to_dict()) == default
    assert config_with(cls, [f"{key}={format_value(value)}" for key, value in default.to_dict().items()]) == default
    assert all(item.metadata["help"] for item in dataclasses.fields(cls))


@both
def test_every_loss_term_reaches_the_student_and_nothing_else(name: str, dim: int, make_trainer) -> None:
    trainer = make_trainer(name, dim)
    trainer.initialize()
    stream, _ = trainer.get_dataloaders()
    trainer.iteration = 3  # ramp-ups have left zero
    terms = trainer.training_losses(trainer._move_to_device(next(stream)))
    assert terms
    for term in terms.values():
        assert term.ndim == 0
        assert torch.isfinite(term)
        for network, _ in trainer.trained:
            network.zero_grad()
        term.backward(retain_graph=True)
        moved = [
            any(p.grad is not None and p.grad.any() for p in network.parameters()) for network, _ in trainer.trained
        ]
        assert sum(moved) == 1
        if hasattr(trainer, "teacher"):
            assert all(parameter.grad is None for parameter in trainer.teacher.parameters())


UNLABELLED = [name for name in METHODS if METHODS[name].needs]


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", UNLABELLED)
def test_without_unlabelled_weight_no_unlabelled_voxel_teaches(name: str, dim: int, make_trainer) -> None:
    """Labelled images are -1000, unlabelled ones 1000: the sign of an input voxel tells whose it is, also in mixes."""
    taught = {}
    for weight in (1.0, 0.0):
        trainer = make_trainer(name, dim, config={"unlabelled_weight": weight})
        trainer.initialize()
        trainer.set_training_mode()
        raw = next(trainer.get_dataloaders()[0])
        trainer.iteration = 3  # ramp-ups have left zero
        batch = trainer._move_to_device(raw)
        images = {"image_l": -1000.0, "image_u_w": 1000.0, "image_u_s": 1000.0}
        batch = dataclasses.replace(
            batch,
            **{
                key: torch.full_like(view, value)
                for key, value in images.items()
                if (view := getattr(batch, key)) is not None
            },
        )
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        for network, _ in trainer.trained:
            unwrap(network).register_forward_hook(
                lambda _, images, outputs, seen=seen: seen.append((images[0], as_list(outputs)[0]))
            )
        with torch.no_grad():
            for parameter in getattr(trainer, "teacher", torch.nn.Module()).parameters():
                parameter.add_(torch.randn_like(parameter))  # a teacher that disagrees with the student
        terms = trainer.training_losses(batch)
        taught[weight] = set(terms)
        logits = [z for _, z in seen]
        gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), logits, allow_unused=True)
        pairs = [(x[:, :1] > 0, g) for (x, _), g in zip(seen, gradients, strict=True) if g is not None]
        on_unlabelled = sum(g.abs().sum(1, keepdim=True)[where].sum().item() for where, g in pairs)
        on_labelled = sum(g.abs().sum(1, keepdim=True)[~where].sum().item() for where, g in pairs)
        assert on_labelled > 0
        assert (on_unlabelled > 0) == (weight > 0)
        if not weight:
            assert all(value == 0 for key, value in terms.items() if not key.startswith(("supervised", "labelled")))
    assert taught[0.0] == taught[1.0]  # all else runs


@pytest.mark.parametrize("name", [name for name in UNLABELLED if METHODS[name].teachers])
def test_only_with_unlabelled_weight_a_step_depends_on_the_teacher(name: str, make_trainer) -> None:
    for weight in (0.0, 1.0):
        weights = []
        for change in (0.0, 1.0):
            trainer = make_trainer(name, 2, config={"unlabelled_weight": weight})
            trainer.initialize()
            trainer.set_training_mode()
            batch = next(trainer.get_dataloaders()[0])
            trainer.iteration = 3
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in trainer.teacher.parameters():
                    parameter.add_(change * torch.randn(parameter.shape, generator=generator))
            torch.manual_seed(1)
            trainer.train_step(batch)
            weights.append([p.detach().clone() for network, _ in trainer.trained for p in network.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True)) == (weight == 0)


@both
def test_training_learns_the_labelled_batch(name: str, dim: int, make_trainer) -> None:
    trainer = make_trainer(name, dim, num_iterations=2000)  # ramp-ups stay near 0
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    losses = [trainer.train_step(batch)["loss"].item() for _ in range(40)]
    assert losses[-1] < losses[0] - 0.3


@both
def test_bfloat16_calculates_in_it_and_trains_the_same(name: str, dim: int, make_trainer) -> None:
    losses = {}
    for bf16 in (False, True):
        trainer = make_trainer(name, dim, num_iterations=200, bf16=bf16)
        trainer.initialize()
        seen: list[torch.Tensor] = []
        for network, _ in trainer.trained:
            unwrap(network).register_forward_hook(lambda *args, seen=seen: seen.append(as_list(args[-1])[0]))
        batch = next(trainer.get_dataloaders()[0])
        losses[bf16] = torch.stack([trainer.train_step(batch)["loss"] for _ in range(5)])
        assert {logits.dtype for logits in seen} == {torch.bfloat16 if bf16 else torch.float32}
        assert losses[bf16].dtype == torch.float32
        assert all(p.dtype == torch.float32 for network, _ in trainer.trained for p in network.parameters())
    assert (losses[True] != losses[False]).any()
    torch.testing.assert_close(losses[True], losses[False], atol=0.05, rtol=0.05)


@every
def test_stopped_and_continued_ends_with_the_same_weights(name: str, make_trainer, tmp_path: Path) -> None:
    whole = make_trainer(name, 2, num_iterations=4)
    whole.initialize()
    stream, _ = whole.get_dataloaders()
    batches = [next(stream) for _ in range(3)]
    for batch in batches[:2]:
        whole.train_step(batch)
    whole.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    whole.train_step(batches[2])
    continued = make_trainer(name, 2, num_iterations=4)
    continued.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    continued.set_training_mode()
    continued.train_step(batches[2])
    for (ours, _), (theirs, _) in zip(whole.trained, continued.trained, strict=True):
        for a, b in zip(unwrap(ours).state_dict().values(), unwrap(theirs).state_dict().values(), strict=True):
            assert torch.equal(a, b)
    deployed = zip(whole.deployed.state_dict().values(), continued.deployed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in deployed)


@both
def test_final_checkpoint_is_the_deployed_network(name: str, dim: int, make_trainer) -> None:
    trainer = make_trainer(name, dim)
    trainer.run_training()
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
    expected = unwrap(trainer.deployed).state_dict()
    assert list(checkpoint["network_weights"]) == list(expected)
    assert all(torch.equal(checkpoint["network_weights"][key], expected[key]) for key in expected)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert "state" not in checkpoint["nnssl_semi"]
    assert checkpoint["nnssl_semi"]["trainer"] == name
    assert len(trainer.record.rows) == 2


@every
def test_unlabelled_scans_are_what_the_registry_says(name: str, make_trainer) -> None:
    trainer = make_trainer(name)
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    assert ("unlabelled" in batch) == ("unlabelled" in METHODS[name].needs)


LABEL_KINDS = {
    "regions": {"labels": {"background": 0, "whole": [1, 2], "core": 1}, "regions_class_order": [2, 1]},
    "ignore": {"labels": {"background": 0, "core": 1, "ignore": 2}},
}


@pytest.mark.parametrize("kind", LABEL_KINDS)
@every
def test_regions_and_ignore_label(name: str, kind: str, make_tiny, make_trainer) -> None:
    folder = make_tiny()
    dataset_json = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**dataset_json, **LABEL_KINDS[kind]}))
    for file in (folder / "nnUNetPlans_3d_fullres").glob("*.pkl"):  # places of what nnU-Net samples from
        properties = pickle.loads(file.read_bytes())
        places = properties["class_locations"]
        everywhere = np.concatenate([places[1], places[2]])
        properties["class_locations"] = (
            {(1, 2): everywhere, (1,): places[1]} if kind == "regions" else {1: places[1], (-1, 0, 1): everywhere}
        )
        file.write_bytes(pickle.dumps(properties))
    trainer = make_trainer(name)
    trainer.run_training()
    assert all(np.isfinite(row["loss"]) for row in trainer.record.rows)
    assert len(trainer.record.rows) == 2
