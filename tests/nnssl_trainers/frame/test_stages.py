from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from nnssl.errors import DataError, EnvironmentProblem, StoppedBySignal
from nnssl.training import checkpoints
from nnssl.training.record import RunRecord, find_supervised
from nnssl_trainers.frame.batch import as_list
from tests.nnssl_trainers.frame.conftest import same, weights

STAGED = {"num_iterations": 8, "epoch": 4, "seed": 5, "staged": True}
NO_LOOK = {"ready_dice": 0.0}
METHODS = ["MeanTeacherTrainer", "FixMatchTrainer", "DSMTTrainer", "CCETrainer", "DPTMTrainer", "PLGDFTrainer"]


def supervised_stage(trainer) -> dict[str, torch.Tensor]:
    """Return the first student's weights after the supervised stage."""
    file = Path(trainer.output_folder) / "checkpoint_supervised.pth"
    return checkpoints.load(file)[checkpoints.KEY]["students"][0]


def write_record(trainer) -> None:
    RunRecord(
        dataset="D",
        trainer=type(trainer).__name__,
        plans="nnUNetPlans",
        configuration="2d",
        fold="0",
        settings=trainer.settings,
        state="done",
        supervised_key=trainer.supervised_key(),
    ).write(Path(trainer.output_folder))


@pytest.mark.parametrize("name", ["MeanTeacherTrainer", "FixMatchTrainer"])
def test_the_supervised_stage_is_a_whole_supervised_run(name: str, make_trainer) -> None:
    supervised = make_trainer("SupervisedTrainer", 2, num_iterations=4, epoch=4, seed=5)
    supervised.run_training()
    trainer = make_trainer(name, 2, **STAGED, config=NO_LOOK)
    trainer.run_training()
    assert same(supervised_stage(trainer), weights(Path(supervised.output_folder)))
    assert not same(supervised_stage(trainer), weights(Path(trainer.output_folder)))


def test_a_finished_supervised_run_takes_the_place_of_the_stage(make_trainer) -> None:
    alone = make_trainer("MeanTeacherTrainer", 2, **STAGED, config=NO_LOOK)
    alone.run_training()
    expected = weights(Path(alone.output_folder))
    supervised = make_trainer("SupervisedTrainer", 2, num_iterations=4, epoch=4, seed=5)
    supervised.run_training()
    write_record(supervised)
    second = make_trainer("MeanTeacherTrainer", 2, **STAGED, config=NO_LOOK, tag="second")
    steps = []
    step = second.train_step
    second.train_step = lambda batch: steps.append(second.iteration) or step(batch)
    second.run_training()
    assert steps == [4, 5, 6, 7]
    assert same(weights(Path(second.output_folder)), expected)
    rows = [json.loads(line) for line in (Path(second.output_folder) / "progress.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [4, 8]


def test_a_stage_of_another_method_is_found_by_its_key_alone(make_trainer) -> None:
    first = make_trainer("MeanTeacherTrainer", 2, **STAGED, config=NO_LOOK)
    first.run_training()
    write_record(first)
    results = Path(first.output_folder).parents[1]
    own = Path("elsewhere")
    key = make_trainer("FixMatchTrainer", 2, **STAGED).supervised_key()
    assert find_supervised(results, key, own) == Path(first.output_folder) / "checkpoint_supervised.pth"
    assert find_supervised(results, key, Path(first.output_folder)) is None
    assert find_supervised(results, "", own) is None
    others = [
        make_trainer("FixMatchTrainer", 2, **{**STAGED, "seed": 6}),
        make_trainer("FixMatchTrainer", 2, **{**STAGED, "num_iterations": 10}),
        make_trainer("FixMatchTrainer", 2, **STAGED, config={"momentum": 0.9}),
        make_trainer("DSMTTrainer", 2, **STAGED),
        make_trainer("FixMatchTrainer", 2, **STAGED, config={"preset": "plain"}),
    ]
    assert all(find_supervised(results, other.supervised_key(), own) is None for other in others)


@pytest.mark.parametrize("stop_at", [2, 4, 6])
def test_a_run_stopped_in_any_stage_ends_like_an_uninterrupted_one(stop_at: int, make_trainer) -> None:
    whole = make_trainer("FixMatchTrainer", 2, **STAGED, config=NO_LOOK)
    whole.run_training()
    expected = weights(Path(whole.output_folder))
    first = make_trainer("FixMatchTrainer", 2, **STAGED, config=NO_LOOK, tag="stopped")
    step = first.train_step

    def stop_after(batch):
        result = step(batch)
        if first.iteration == stop_at:
            first.request_stop()
        return result

    first.train_step = stop_after
    with pytest.raises(StoppedBySignal):
        first.run_training()
    second = make_trainer("FixMatchTrainer", 2, **STAGED, config=NO_LOOK, tag="stopped")
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    assert second.iteration == stop_at
    second.run_training()
    assert same(weights(Path(second.output_folder)), expected)


def test_each_stage_has_a_complete_schedule(make_trainer) -> None:
    trainer = make_trainer("MeanTeacherTrainer", 2, **STAGED)
    factors = [trainer.learning_rate_factors(i)[0] for i in range(8)]
    assert factors[:4] == factors[4:] == [(1 - i / 4) ** 0.9 for i in range(4)]
    whole = make_trainer("FixMatchTrainer", 2, **STAGED, config={"restart": False})
    assert [whole.learning_rate_factors(i)[0] for i in (0, 4)] == [1.0, 0.5**0.9]


def test_momentum_and_teacher_start_anew_with_the_second_stage(make_trainer) -> None:
    trainer = make_trainer("MeanTeacherTrainer", 2, **STAGED, config=NO_LOOK)
    trainer.on_train_start()
    for _ in range(4):
        trainer.train_step(next(trainer.dataloader_train))
    assert trainer.optimizer.state
    assert trainer.deployed is trainer.network
    trainer.current_epoch = 1
    trainer.before_step()
    assert not trainer.optimizer.state
    assert trainer.deployed is trainer.teacher
    assert same(trainer.teacher.state_dict(), trainer.network.state_dict())
    assert trainer.method_begin == 4
    batch = next(trainer.dataloader_train)
    assert set(batch) == {"labelled", "unlabelled"}
    trainer.train_step(batch)
    student, teacher = trainer.network.state_dict(), trainer.teacher.state_dict()
    start = supervised_stage(trainer)
    name = next(key for key in student if not torch.equal(student[key], start[key]))
    torch.testing.assert_close(teacher[name], 0.99 * start[name] + 0.01 * student[name])
    trainer.dataloader_train.close()


def test_the_supervised_stage_draws_no_unlabelled_patches(make_trainer) -> None:
    trainer = make_trainer("MeanTeacherTrainer", 2, **STAGED)
    trainer.initialize()
    stream, _ = trainer.get_dataloaders()
    assert set(next(stream)) == {"labelled"}
    stream.close()


def test_missing_unlabelled_scans_are_an_error_before_the_supervised_stage(make_trainer) -> None:
    trainer = make_trainer("MeanTeacherTrainer", 2, **STAGED)
    folder = Path(trainer.preprocessed_dataset_folder + "_unlabelled")
    for file in folder.glob("*.pkl"):
        file.unlink()
    with pytest.raises(DataError, match="not preprocessed"):
        trainer.run_training()
    assert trainer.iteration == 0


@pytest.mark.parametrize("name", METHODS)
def test_without_readiness_the_run_is_supervised_and_says_so(name: str, make_trainer, caplog) -> None:
    config = {"ready_dice": 1.0, **({"student2": "plan"} if name == "DSMTTrainer" else {})}
    config |= {"network": "plan", "student2": "plan"} if name == "CCETrainer" else {}
    trainer = make_trainer(name, 2, **STAGED, config=config)
    trainer.training_losses = lambda _: pytest.fail("unlabelled patches counted")
    with caplog.at_level(logging.INFO):
        trainer.run_training()
    assert trainer.method_begin is None
    assert trainer.unlabelled_from is None
    assert "this run is supervised: no unlabelled scan counted" in caplog.text
    assert "Dice on labelled patches: core 0." in caplog.text


def test_unlabelled_patches_count_from_the_first_good_look_on(make_trainer) -> None:
    trainer = make_trainer(
        "MeanTeacherTrainer", 2, epoch=2, num_iterations=10, staged=True, config={"supervised_share": 0.2}
    )
    looks = iter([[0.9, 0.2], [0.9, 0.4], [0.5, 0.6], [0.0, 0.0]])
    trainer._labelled_dice = lambda *_: next(looks)
    counted = []
    losses = trainer.training_losses
    trainer.training_losses = lambda batch: counted.append((trainer.iteration, batch.iteration)) or losses(batch)
    trainer.run_training()
    assert trainer.method_begin == 6
    assert counted == [(6, 0), (7, 1), (8, 2), (9, 3)]
    assert trainer.method_iterations == 4


@pytest.mark.parametrize(
    ("share", "least", "length", "expected"),
    [(0.05, 250, 10_000, 500), (0.05, 250, 2_000, 250), (0.05, 250, 100, 100), (0.5, 0, 7, 4), (0.0, 250, 2_000, 0)],
)
def test_length_of_the_supervised_stage(make_trainer, share: float, least: int, length: int, expected: int) -> None:
    config = {"supervised_share": share, "supervised_least": least}
    trainer = make_trainer("MeanTeacherTrainer", 2, num_iterations=length, staged=True, config=config)
    assert trainer.supervised_iterations == expected


def test_plain_fixmatch_is_supervised_for_250_iterations_at_least(make_trainer) -> None:
    trainer = make_trainer("FixMatchTrainer", 2, num_iterations=1_000, staged=True, config={"preset": "plain"})
    assert trainer.supervised_iterations == 250


def test_the_look_is_the_dice_of_the_labelling_network_on_plain_patches(make_trainer) -> None:
    trainer = make_trainer(
        "MeanTeacherTrainer", 2, epoch=4, num_iterations=8, staged=True, config={"supervised_share": 0.5}
    )
    trainer.on_train_start()
    trainer.iteration, trainer.current_epoch = 4, 1
    trainer.begin_second_stage()
    with torch.no_grad():
        for parameter in trainer.teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    trainer.reopen_streams()
    batches = [next(trainer.dataloader_train)["look"] for _ in range(8)]
    found = trainer._labelled_dice(trainer.teacher, batches)
    hits, sizes = torch.zeros(2), torch.zeros(2)
    for batch in batches:
        labels = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
        guess = as_list(trainer.teacher(batch["data"]))[0].argmax(1, keepdim=True)
        for k in (1, 2):
            hits[k - 1] += ((guess == k) & (labels == k)).sum()
            sizes[k - 1] += (guess == k).sum() + (labels == k).sum()
    assert (sizes > 0).all()
    torch.testing.assert_close(torch.tensor(found), 2 * hits / sizes)
    trainer.dataloader_train.close()


def test_a_checkpoint_from_before_the_stages_goes_on_as_it_began(make_trainer) -> None:
    trainer = make_trainer("MeanTeacherTrainer", 2, num_iterations=8, epoch=4)
    trainer.initialize()
    state = trainer.state()
    for key in (
        "second_stage",
        "supervised_iterations",
        "method_begin",
        "labelled_dice",
        "lost_classes",
        "counted_steps",
    ):
        state.pop(key, None)
    later = make_trainer("MeanTeacherTrainer", 2, **STAGED)
    later.initialize()
    later.load_state(state)
    assert later.method_begin == 0
    assert later.supervised_iterations == 0


@pytest.mark.parametrize("name", METHODS)
def test_start_from_fills_every_student_of_the_architecture_and_the_teacher(name: str, make_trainer) -> None:
    supervised = make_trainer("SupervisedTrainer", 2, num_iterations=2)
    supervised.run_training()
    file = Path(supervised.output_folder) / "checkpoint_final.pth"
    config = {"student2": "plan"} if name == "DSMTTrainer" else {}
    config |= {"network": "plan", "student2": "plan"} if name == "CCETrainer" else {}
    trainer = make_trainer(name, 2, staged=True, config={**NO_LOOK, **config}, start_from="there")
    trainer.load_start(str(file))
    trainer.on_train_start()
    trainer.dataloader_train.close()
    assert trainer.supervised_iterations == 0
    theirs = weights(file.parent)
    networks = [network for network, _ in trainer.trained] + ([trainer.teacher] if hasattr(trainer, "teacher") else [])
    assert all(same(network.state_dict(), theirs) for network in networks)
    assert trainer.supervised_key() == ""


def test_start_from_another_network_is_an_error(make_trainer) -> None:
    supervised = make_trainer("SupervisedTrainer", 2, num_iterations=1)
    supervised.run_training()
    file = Path(supervised.output_folder) / "checkpoint_final.pth"
    other = make_trainer("FixMatchTrainer", 2, staged=True, config={"network": "unet_bcp"}, start_from="there")
    with pytest.raises(EnvironmentProblem, match="another network"):
        other.load_start(str(file))


def log_of(trainer) -> dict[str, list[object]]:
    """Return the lists of nnU-Net's log in the final checkpoint."""
    return checkpoints.load(Path(trainer.output_folder) / "checkpoint_final.pth")["logging"]


@pytest.mark.parametrize("stage", [4, 6])  # the second stage begins with an epoch, and inside an epoch
@pytest.mark.parametrize("donor", ["MeanTeacherTrainer", "SupervisedTrainer"])
def test_nnunets_log_has_one_entry_an_epoch_after_a_stage_is_taken_over(
    donor: str, stage: int, make_trainer, capsys
) -> None:
    staged = {**STAGED, "num_iterations": 2 * stage, "config": NO_LOOK}
    run = staged if donor == "MeanTeacherTrainer" else {"num_iterations": stage, "epoch": 4, "seed": 5}
    first = make_trainer(donor, 2, **run)
    first.run_training()
    write_record(first)
    second = make_trainer("FixMatchTrainer", 2, **staged)
    second.run_training()
    assert "logging issue" not in capsys.readouterr().out
    assert {len(values) for values in log_of(second).values()} == {second.num_epochs}
    starts = log_of(second)["epoch_start_timestamps"]
    assert starts[0] == log_of(first)["epoch_start_timestamps"][0]  # the stage was taken over
    assert starts == sorted(starts)
