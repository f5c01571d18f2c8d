"""A run that is stopped or killed at any moment ends with the weights of the uninterrupted one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from nnssl.errors import EnvironmentProblem, StoppedBySignal, UsageError
from nnssl.registry import find_method
from nnssl.training import checkpoints
from nnssl.training import settings as run_settings

METHOD = "DSMTTrainer"  # a teacher, two students, two optimisers, two phases
RUN = {"num_iterations": 9, "seed": 5}
KILLS = 20


def weights(folder: Path, file: str = "checkpoint_final.pth") -> dict[str, torch.Tensor]:
    return checkpoints.load(folder / file)["network_weights"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def uninterrupted(make_trainer) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    trainer = make_trainer(METHOD, **RUN)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    result = weights(folder), json.loads("[" + ",".join((folder / "progress.jsonl").read_text().splitlines()) + "]")
    for file in folder.iterdir():
        file.unlink()
    return result


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
    timing = {"seconds_per_iteration", "data_wait_share"}
    for ours, theirs in zip(second.record.rows, rows, strict=True):
        assert {k: v for k, v in ours.items() if k not in timing} == {
            k: v for k, v in theirs.items() if k not in timing
        }


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
    context.set_forkserver_preload(["nnssl_trainers.methods.mean_teacher", "tests.nnssl_trainers.frame.test_resume"])
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
