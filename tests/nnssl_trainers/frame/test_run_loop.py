"""A run ends with the same weights after a stop or a kill at any moment, and a stop or a divergence has a message."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnssl.errors import EnvironmentProblem, NnsslError, StoppedBySignal, StoppedByUser
from nnssl.registry import find_method
from nnssl.training import checkpoints
from nnssl.training import settings as run_settings
from nnssl_trainers.frame import run_loop
from tests.nnssl_trainers.frame.conftest import METHOD, RUN, same, weights

KILLS = 20


@pytest.mark.parametrize("stop_after", [1, 2, 4, 9])  # pre-training ends after 4
def test_stopped_and_continued(stop_after: int, uninterrupted, make_trainer) -> None:
    first = make_trainer(METHOD, **RUN)
    step = first.train_step

    def step_and_stop(batch):
        result = step(batch)
        if first.iteration == stop_after:
            first.request_stop()
        return result

    first.train_step = step_and_stop
    with pytest.raises(StoppedBySignal) as stop:
        first.run_training()
    assert stop.value.exit_code == 75
    torch.manual_seed(999)  # the continued run must not depend on where the generators happen to be
    second = make_trainer(METHOD, **RUN)
    second.load_checkpoint(str(Path(second.output_folder) / "checkpoint_latest.pth"))
    assert second.iteration == stop_after
    second.run_training()
    reference, rows = uninterrupted
    assert same(weights(Path(second.output_folder)), reference)
    timing = {"seconds_per_iteration", "steady_seconds_per_iteration", "data_wait_share", "validation_seconds"}
    for ours, theirs in zip(second.record.rows, rows, strict=True):
        assert {k: v for k, v in ours.items() if k not in timing} == {
            k: v for k, v in theirs.items() if k not in timing
        }


def test_the_steady_pace_is_that_of_the_second_half_of_an_epoch(make_trainer, monkeypatch) -> None:
    """The clock is turned by hand: 5 s for the first step of the run, 1 s for every other, 3 s for a validation."""
    trainer, clock = make_trainer("MeanTeacherTrainer", 2, num_iterations=3), [0.0]
    by_hand = SimpleNamespace(perf_counter=lambda: clock[0], time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(run_loop, "time", by_hand)
    step, begin_validation = trainer.train_step, trainer.on_validation_epoch_start

    def slow_step(batch):
        clock[0] += 1.0 if trainer.iteration else 5.0
        return step(batch)

    def slow_validation():
        clock[0] += 3.0
        begin_validation()

    trainer.train_step, trainer.on_validation_epoch_start = slow_step, slow_validation
    trainer.run_training()
    (row,) = trainer.record.rows
    assert (row["seconds_per_iteration"], row["steady_seconds_per_iteration"]) == (7 / 3, 1.0)
    assert row["validation_seconds"] == 3.0


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_term(make_trainer) -> None:
    trainer = make_trainer("MeanTeacherTrainer", 2)
    losses = trainer.training_losses

    def diverge_in_the_second_epoch(batch):
        terms = losses(batch)
        factor = float("nan") if batch.iteration == 4 else 1.0
        return {**terms, "consistency": factor * terms["consistency"]}

    trainer.training_losses = diverge_in_the_second_epoch
    with pytest.raises(NnsslError, match="training diverged") as raised:
        trainer.run_training()
    assert raised.value.where == "epoch 1, iteration 6"
    assert "consistency=nan" in raised.value.why
    latest = checkpoints.load(Path(trainer.output_folder) / "checkpoint_latest.pth")
    assert latest["nnssl_semi"]["iteration"] == 3


def test_steps_that_the_scaler_skipped_are_no_divergence(make_trainer) -> None:
    trainer = make_trainer("SupervisedTrainer", 2)
    trainer.initialize()
    trainer.grad_scaler = object()
    trainer._check_finite({"supervised": float("inf")})
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(float("nan"))
    with pytest.raises(NnsslError, match="training diverged"):
        trainer._check_finite({"supervised": float("inf")})
    trainer._check_finite({"supervised": 1.0})


@pytest.mark.parametrize(
    ("by_user", "kind", "cause"), [(False, StoppedBySignal, "a signal"), (True, StoppedByUser, "Ctrl-C")]
)
def test_a_stop_outside_of_the_loop_is_immediate_and_tells_what_is_saved(by_user, kind, cause, make_trainer) -> None:
    trainer = make_trainer("SupervisedTrainer", 2)
    messages = []
    for iteration, saved in ((0, False), (3, True), (6, True)):
        trainer.iteration = iteration
        if saved:
            (Path(trainer.output_folder) / "checkpoint_latest.pth").touch()
        with pytest.raises(kind) as stopped:
            trainer.request_stop(by_user)
        assert stopped.value.why == f"{iteration} of 6 iterations are done"
        messages.append(stopped.value.what)
    ends = ("nothing is saved", "the run is saved", "training is done")
    assert messages == [f"stopped by {cause}; {end}" for end in ends]


def test_an_unfinished_run_does_not_continue_from_a_slim_checkpoint(make_trainer) -> None:
    first = make_trainer("SupervisedTrainer", 2)
    first.initialize()
    slim = Path(first.output_folder) / "checkpoint_best.pth"
    first.save_checkpoint(str(slim))
    second = make_trainer("SupervisedTrainer", 2)
    second.load_checkpoint(str(slim))
    with pytest.raises(EnvironmentProblem, match="holds the deployed network only"):
        second.run_training()


def test_nnunets_code_sees_the_deployed_network(make_trainer) -> None:
    trainer = make_trainer("MeanTeacherTrainer", 2)
    trainer.initialize()
    student = trainer.network
    with pytest.raises(RuntimeError, match="inside"), trainer.use_network(trainer.deployed):
        assert trainer.network is trainer.teacher
        raise RuntimeError("inside")
    assert trainer.network is student


def test_the_names_of_structures_have_the_order_of_the_dice(make_trainer) -> None:
    trainer = make_trainer("SupervisedTrainer", 2)
    trainer.dataset_json = {**trainer.dataset_json, "labels": {"background": 0, "rim": 2, "core": 1, "ignore": 3}}
    assert trainer.structure_names() == ["core", "rim"]


def test_number_of_workers_does_not_matter(uninterrupted, make_trainer, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = make_trainer(METHOD, **RUN)
    trainer.run_training()
    assert same(weights(Path(trainer.output_folder)), uninterrupted[0])


def test_another_seed_gives_other_weights(uninterrupted, make_trainer) -> None:
    trainer = make_trainer(METHOD, **{**RUN, "seed": 6})
    trainer.run_training()
    assert not same(weights(Path(trainer.output_folder)), uninterrupted[0])


def session(
    folder: str, output: str, environment: dict[str, str], method: str, kill_at_save: int | None = None
) -> None:
    """Run or continue in this process, as a user's command would; optionally die while writing a checkpoint."""
    os.environ.update(environment)
    multiprocessing.set_start_method(method, force=True)
    torch.set_num_threads(1)
    run_settings.ITERATIONS_PER_EPOCH = 3
    base = Path(folder)
    plans = json.loads((base / "nnUNetPlans.json").read_text())
    plans["nnssl_semi"] = {"run": run_settings.RunSettings(**RUN).to_dict()}
    dataset_json = json.loads((base / "dataset.json").read_text())
    trainer = find_method(METHOD).load()(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    trainer.num_val_iterations_per_epoch = 1
    trainer._plot = lambda: None
    if kill_at_save is not None:
        saves, fsync = [0], os.fsync

        def fsync_or_die(descriptor: int) -> None:
            if ".pth." in os.readlink(f"/proc/self/fd/{descriptor}"):
                saves[0] += 1
                if saves[0] == kill_at_save:
                    os.truncate(descriptor, 1000)
                    os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = fsync_or_die
    latest = Path(output) / "checkpoint_latest.pth"
    if (Path(output) / "checkpoint_final.pth").is_file():
        return
    if latest.is_file() or checkpoints.previous(latest).is_file():
        trainer.load_checkpoint(str(latest))
    trainer.run_training()


def start(folder: Path, output: Path, kill_at_save: int | None = None, method: str = "fork") -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nnssl_trainers.methods.mean_teacher", "tests.nnssl_trainers.frame.test_run_loop"])
    environment = {name: value for name, value in os.environ.items() if name.startswith("nnUNet")}
    process = context.Process(target=session, args=(str(folder), str(output), environment, method, kill_at_save))
    process.start()
    return process


def finish(folder: Path, output: Path) -> dict[str, torch.Tensor]:
    process = start(folder, output)
    process.join(120)
    assert process.exitcode == 0
    return weights(output)


def children_of(pid: int) -> list[int]:
    return [other for other in map(int, filter(str.isdigit, os.listdir("/proc"))) if state(other)[1] == pid]


def state(pid: int) -> tuple[str, int]:
    """Return state letter and parent of a process; Z is one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", 0
    return fields[0], int(fields[1])


def assert_gone_after_5_s(pids: list[int]) -> None:
    deadline = time.monotonic() + 5
    while any(state(pid)[0] != "Z" for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if state(pid)[0] != "Z"]


@pytest.fixture
def reference_run(make_tiny, monkeypatch) -> tuple[Path, Path, dict[str, torch.Tensor], float]:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    folder = make_tiny()
    output = folder.parents[1] / "nnUNet_results" / folder.name / f"{METHOD}__nnUNetPlans__3d_fullres" / "fold_0"
    finish(folder, output)  # the first one pays for the imports of the fork server
    for file in output.iterdir():
        file.unlink()
    clock = time.perf_counter()
    reference = finish(folder, output)
    seconds = time.perf_counter() - clock
    for file in output.iterdir():
        file.unlink()
    return folder, output, reference, seconds


@pytest.mark.slow
def test_killed_at_random_moments(reference_run) -> None:
    folder, output, reference, seconds = reference_run
    moments = random.Random(0)
    workers: list[int] = []
    for _ in range(KILLS):
        process = start(folder, output)
        process.join(moments.uniform(0.05, 0.9) * seconds)
        if process.is_alive():
            workers += children_of(process.pid)
            process.kill()
            process.join()
        elif (output / "checkpoint_final.pth").is_file():
            assert same(weights(output), reference)
            for file in output.iterdir():
                file.unlink()
    assert same(finish(folder, output), reference)
    assert workers
    assert_gone_after_5_s(workers)


@pytest.mark.slow
def test_no_orphan_under_the_other_start_method(reference_run) -> None:
    folder, output, _, _ = reference_run
    before = set(map(int, filter(str.isdigit, os.listdir("/proc"))))
    process = start(folder, output, method="forkserver")
    while not (output / "progress.jsonl").is_file():
        time.sleep(0.05)
    family = {process.pid}
    while (
        more := {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if state(pid)[1] in family} - family
    ):
        family |= more
    assert len(family - before) > 1
    process.kill()
    process.join()
    assert_gone_after_5_s(sorted(family - before - {process.pid}))


@pytest.mark.slow
@pytest.mark.parametrize("save", [1, 2, 4, 5])
def test_killed_while_writing_a_checkpoint(save: int, reference_run) -> None:
    folder, output, reference, _ = reference_run
    process = start(folder, output, kill_at_save=save)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert same(finish(folder, output), reference)
