from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.training import checkpoints
from tests.nnssl_trainers.frame.conftest import METHOD, RUN, same, weights


def test_truncated_latest_falls_back_to_the_one_before(make_trainer, uninterrupted) -> None:
    first = make_trainer(METHOD, **RUN)
    first.on_train_end = lambda: None
    first.run_training()
    latest = Path(first.output_folder) / "checkpoint_latest.pth"
    latest.write_bytes(latest.read_bytes()[: latest.stat().st_size // 2])
    second = make_trainer(METHOD, **RUN)
    second.load_checkpoint(str(latest))
    assert second.iteration == 6
    second.run_training()
    assert same(weights(latest.parent), uninterrupted[0])


def test_both_checkpoints_truncated(make_trainer) -> None:
    trainer = make_trainer(METHOD, **RUN)
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    for path in (latest, checkpoints.previous(latest)):
        path.write_bytes(b"PK")
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        trainer.load_checkpoint(str(latest))


def test_other_settings_and_other_method_are_refused(make_trainer) -> None:
    trainer = make_trainer(METHOD, **RUN)
    trainer.run_training()
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    with pytest.raises(UsageError, match="other settings"):
        make_trainer(METHOD, **{**RUN, "seed": 1}).load_checkpoint(str(final))
    with pytest.raises(EnvironmentProblem, match="SupervisedTrainer"):
        make_trainer("SupervisedTrainer", **RUN).load_checkpoint(str(final))
    done = make_trainer(METHOD, **RUN)
    done.load_checkpoint(str(final))
    done.run_training()
    assert same(done.deployed.state_dict(), weights(final.parent))


def test_only_the_latest_checkpoint_holds_the_whole_state(make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer("MeanTeacherTrainer", 2)
    trainer.initialize()
    sizes = {}
    for name in ("checkpoint_latest.pth", "checkpoint_best.pth"):
        trainer.save_checkpoint(str(tmp_path / name))
        content = torch.load(tmp_path / name, weights_only=True)
        assert content["trainer_name"] == "nnUNetTrainer"
        sizes[name] = "state" in content[checkpoints.KEY]
        assert same(content["network_weights"], trainer.deployed.state_dict())
    assert sizes == {"checkpoint_latest.pth": True, "checkpoint_best.pth": False}


def test_other_processes_and_disabled_checkpoints_write_nothing(make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer("SupervisedTrainer", 2)
    trainer.initialize()
    trainer.local_rank = 1
    trainer.save_checkpoint(str(tmp_path / "checkpoint_best.pth"))
    trainer.local_rank, trainer.disable_checkpointing = 0, True
    trainer.save_checkpoint(str(tmp_path / "checkpoint_best.pth"))
    assert list(tmp_path.glob("*.pth")) == []


def test_the_folder_of_a_model_has_the_tag_of_the_run(make_trainer) -> None:
    default = Path(make_trainer("SupervisedTrainer", 2).output_folder)
    tagged = Path(make_trainer("SupervisedTrainer", 2, tag="seed1").output_folder)
    assert tagged.parent.name == f"{default.parent.name}@seed1"
    assert tagged.parent.parent == default.parent.parent
    assert tagged.name == default.name == "fold_0"


def test_an_epoch_of_a_longer_run_is_counted_by_iterations(make_trainer, tmp_path: Path) -> None:
    file = str(tmp_path / "checkpoint_latest.pth")
    short = make_trainer("SupervisedTrainer", 2, epoch=3, num_iterations=4)  # the second epoch has one iteration
    short.initialize()
    short.iteration, short.current_epoch = 4, 2
    short.save_checkpoint(file)
    for total, epoch in ((4, 2), (9, 1)):
        continued = make_trainer("SupervisedTrainer", 2, epoch=3, num_iterations=total)
        continued.load_checkpoint(file)
        assert (continued.iteration, continued.current_epoch) == (4, epoch)


def test_cascades_are_refused(make_tiny, make_trainer) -> None:
    file = make_tiny() / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    file.write_text(json.dumps(plans))
    with pytest.raises(UsageError, match="3d_fullres is a cascade"):
        make_trainer("SupervisedTrainer")
