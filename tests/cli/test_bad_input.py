"""Bad input of every kind, over all commands: the documented exit code, one message, and nothing half-written."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.bad_input_cases import CASES as FIRST_CASES
from tests.cli.bad_input_cases import BadInput
from tests.cli.bad_input_sweep import SWEEP_CASES
from tests.cli.bad_input_world import (
    EVALUATE,
    PHANTOM,
    PLAN,
    PREDICT,
    RESUME,
    TRAIN,
    World,
    few_samples_and_steps,
    make_world,
    write_image,
)

CASES = [*FIRST_CASES, *SWEEP_CASES]
COMMANDS = {
    "convert", "plan_and_preprocess", "train", "predict", "evaluate", "compare", "report", "look", "phantom", "methods",
    "export", "install", "pseudo_quality", "suggest", "accept", "clean", "sweep",
}  # fmt: skip
RECORDS = {"out", "out/plans.json", "out/dataset.json", "out/predict_from_raw_data_args.json"}


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("world")
    with few_samples_and_steps():
        make_world(root)
        yield root


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    root = tmp_path / "world"
    shutil.copytree(template, root)
    made = World(root, monkeypatch)
    made.use()
    return made


def assert_one_message(world: World, command: str, code: int, words: tuple[str, ...], capsys: Any) -> None:
    """Run a command that must fail, in both forms of the message, and check what it prints."""
    assert world.run(command) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(re.findall("^error: ", captured.err, re.MULTILINE)) == 1
    assert "Traceback" not in captured.err
    assert [word for word in words if word.format(root=world.root) not in captured.err] == []
    assert world.run(command, "--json") == code
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert (printed["exit_code"], captured.err) == (code, "")
    said = "\n".join(map(str, printed.values()))
    assert [word for word in words if word.format(root=world.root) not in said] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: BadInput, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    case.spoil(world)
    before = world.files()
    assert_one_message(world, case.command, case.code, case.words, capsys)
    assert world.files() == before


def test_the_table_covers_every_command() -> None:
    assert {case.command.split()[0].removeprefix("nnssl_") for case in CASES} == COMMANDS
    assert len({case.name for case in CASES}) == len(CASES) >= 40


# ---------------------------------------------------------------------- stopped, out of memory, out of order


def out_of_host_memory(*_: object, **__: object) -> None:
    raise MemoryError("Unable to allocate 9 GiB")


def out_of_device_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")


def out_of_torch_memory(*_: object, **__: object) -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")


def disk_error(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device", "/somewhere/file")


def sent(number: signal.Signals) -> Callable[..., None]:
    """Return a function that lets this process receive a signal; its handler runs at once."""

    def send(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    return send


STEPS = {
    PLAN: "nnssl.planning.api.make_plans",
    TRAIN: "nnssl_trainers.frame.trainer.SemiSupervisedTrainer.train_step",
    PREDICT: "nnssl.inference.predictor.Predictor.prepare",
    EVALUATE: "nnssl.evaluation.api.summarise",
    PHANTOM: "nnssl.data.phantom._write_case",
}
FAILURES = {
    "MemoryError": (out_of_host_memory, 5, ("out of memory", "9 GiB")),
    "CUDA out of memory": (out_of_device_memory, 5, ("out of memory", "9 GiB")),
    "no memory for torch": (out_of_torch_memory, 5, ("out of memory", "can't allocate")),
    "disk full": (disk_error, 4, ("No space left",)),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("command", STEPS, ids=lambda command: command.split()[0])
def test_failure_half_way(command: str, failure: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    fails, code, words = FAILURES[failure]
    world.patch.setattr(STEPS[command], fails)
    before = world.files()
    assert_one_message(world, command, code, words, capsys)
    after = world.files()
    assert {name: after.pop(name) for name in RECORDS & set(after)}.keys() == (RECORDS if command == PREDICT else set())
    assert after == before


@pytest.mark.parametrize("command", [c for c in STEPS if c != TRAIN], ids=lambda command: command.split()[0])
def test_ctrl_c(command: str, world: World, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    world.patch.setattr(STEPS[command], sent(signal.SIGINT))
    before = world.files()
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored in the background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))
    assert world.run(command) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "stopped by Ctrl-C\n")
    assert world.run(command, "--json") == 130
    assert json.loads(capsys.readouterr().out)["exit_code"] == 130
    assert {name: state for name, state in world.files().items() if name not in RECORDS} == before


def test_ctrl_c_in_training_and_continued(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    from nnssl.training import checkpoints
    from nnssl_trainers.frame.trainer import SemiSupervisedTrainer

    def after_step(trainer: Any) -> None:
        if trainer.iteration == 3:
            os.kill(os.getpid(), signal.SIGINT)

    command = f"{RESUME} -num_iterations 5 --no_val"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemiSupervisedTrainer, "after_step", after_step)
        assert world.run(command, "--overwrite") == 130
    captured = capsys.readouterr()
    assert captured.err.count("error: stopped by Ctrl-C; the run is saved") == 1
    assert "3 of 5 iterations are done" in captured.err
    assert checkpoints.load(world.fold / "checkpoint_latest.pth")["nnssl_semi"]["iteration"] == 3
    assert world.run(command, "--c") == 0


@pytest.mark.parametrize("command", [c for c in STEPS if c != TRAIN], ids=lambda command: command.split()[0])
def test_sigterm(command: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    world.patch.setattr(STEPS[command], sent(signal.SIGTERM))
    before = world.files()
    assert_one_message(world, command, 75, ("stopped by a signal", "the same command again"), capsys)
    assert {name: state for name, state in world.files().items() if name not in RECORDS} == before
    assert signal.getsignal(signal.SIGTERM) == handler


def test_sigterm_in_training_and_continued(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    from nnssl.training import checkpoints
    from nnssl_trainers.frame.trainer import SemiSupervisedTrainer

    def after_step(trainer: Any) -> None:
        if trainer.iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    command = f"{RESUME} -num_iterations 5 --no_val"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemiSupervisedTrainer, "after_step", after_step)
        assert world.run(command, "--overwrite") == 75
    captured = capsys.readouterr()
    assert captured.err.count("error: stopped by a signal; the run is saved") == 1
    assert "3 of 5 iterations" in captured.err
    assert "--c" in captured.err
    assert checkpoints.load(world.fold / "checkpoint_latest.pth")["nnssl_semi"]["iteration"] == 3
    assert world.run(command, "--c") == 0
    assert checkpoints.load(world.fold / "checkpoint_final.pth")["nnssl_semi"]["iteration"] == 5


def test_unexpected_error_leaves_its_traceback_in_a_log(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    world.patch.setattr(STEPS[EVALUATE], fails)
    assert_one_message(
        world, EVALUATE, 1, ("unexpected ZeroDivisionError", "a mistake of ours", "traceback in"), capsys
    )
    (log,) = (world.root / "tmp").glob("nnssl_evaluate_*.log")
    assert "in fails" in log.read_text()


def damage_unseen(path: Path) -> None:
    """Overwrite a file as a disk does that decays: size and times stay."""
    state = path.stat()
    path.write_bytes(bytes(state.st_size))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.slow
def test_error_in_one_process_of_several(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    for file in world.cases.glob("*[0-9].b2nd"):
        damage_unseen(file)
    before = {name: state for name, state in world.files().items() if not name.startswith("tmp")}
    assert world.run(f"{TRAIN} -num_gpus 2") == 3
    captured = capfd.readouterr()
    assert (captured.out, captured.err.count("error: ")) == ("", 1)
    assert "cannot be read" in captured.err
    assert {name: state for name, state in world.files().items() if not name.startswith("tmp")} == before


# ---------------------------------------------------------------------- a disk that is full


def under_limit(root: str, command: str, limit: int) -> None:
    """Run a command in this process with files limited to `limit` bytes, its messages in the files out and err."""
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{root}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, few_samples_and_steps():
        world = World(Path(root), patch)
        world.use()
        code = world.run(command)
    sys.exit(code)


@pytest.fixture(scope="session")
def fork_server() -> Any:
    """Return a context whose processes start with everything imported, and without this process's threads."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nnssl_trainers.methods.mean_teacher", "nnssl.planning.api", __name__])
    forkserver.ensure_running()
    return context


def run_under_limit(context: Any, world: World, command: str, limit: int) -> tuple[int, str]:
    """Return exit code and message of a command whose files may not grow beyond `limit` bytes."""
    process = context.Process(target=under_limit, args=(str(world.root), command, limit))
    process.start()
    process.join(120)
    return process.exitcode, Path(f"{world.root}.err").read_text()


def large_scan(world: World) -> None:
    """Make the scan so large that its mask of noise is the largest file that a prediction writes."""
    rng = torch.Generator().manual_seed(0)
    for channel in range(2):
        voxels = torch.randn(40, 48, 48, generator=rng).numpy()
        write_image(world.scans / f"test_0_{channel:04d}.nii.gz", voxels)


FULL = {
    "folder for temporary files": (PLAN, 800, "tmp/nnssl_plan_"),
    "plans": (PLAN, 3_000, "tmp/nnssl_plan_"),
    "preprocessed case": (PLAN, 20_000, "case_0"),
    "first checkpoint": (TRAIN, 1_000_000, "checkpoint_best.pth"),
    "second checkpoint": (TRAIN, 2_000_000, "checkpoint_latest.pth"),
    "description of the model": (PREDICT, 3_000, "plans.json"),
    "mask": (PREDICT, 10_000, "test_0.nii.gz"),
    "summary": (EVALUATE, 2_000, "summary.json"),
    "phantom": (PHANTOM, 3_000, "Dataset907_Phantom"),
}


@pytest.mark.parametrize("name", FULL)
def test_full_disk(name: str, fork_server: Any, world: World) -> None:
    command, limit, file = FULL[name]
    complete = world.files()
    if command == PLAN:
        shutil.rmtree(world.preprocessed)
    if name == "mask":
        large_scan(world)
    before = world.files()
    code, message = run_under_limit(fork_server, world, command, limit)
    assert (code, message.count("error: "), "Traceback" in message) == (4, 1, False), message
    assert file in message
    after = world.files()
    assert name == "second checkpoint" or {state: after.get(state) for state in before} == before
    made = {state for state in after if state not in before}
    if command == PREDICT:
        assert made <= RECORDS
        assert all(json.loads((world.root / record).read_text()) for record in made if record.endswith(".json"))
    elif name == "second checkpoint":
        assert_run_replaced(world, after)
    elif command == PLAN:
        assert not [state for state in made if state.endswith(".tmp")]
        assert world.run(PLAN) == 0
        assert world.files() == complete
    else:
        assert not made


def assert_run_replaced(world: World, after: dict[str, str]) -> None:
    """Check that the new run alone stands in its folder, and that its checkpoint is whole."""
    from nnssl.training import checkpoints

    model = str(world.model.relative_to(world.root))
    assert {Path(name).parts[-1] for name in after if Path(name).parent == Path(model) and after[name] == "folder"} == {
        "fold_0"
    }
    assert {path.name for path in world.fold.glob("*.pth*")} == {"checkpoint_best.pth"}
    assert checkpoints.load(world.fold / "checkpoint_best.pth")["current_epoch"] == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_full_standard_output(options: list[str]) -> None:
    script = "import sys, nnssl_commands; sys.exit(nnssl_commands.methods())"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script, *options], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 4
    assert done.stderr.count("error: ") == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    script = "import sys, nnssl_commands; sys.stdin.read(); sys.exit(nnssl_commands.methods())"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout
        assert command.stdin
        assert command.stderr
        command.stdout.close()
        command.stdin.close()
        assert command.stderr.read() == ""
        assert command.wait() == 0
