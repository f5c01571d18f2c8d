import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnssl.errors import DataError, EnvironmentProblem, NnsslError, OutOfMemory, UsageError
from nnssl.system import workers
from nnssl.system.workers import WorkerTraceback, run_parallel


def square(number: int) -> int:
    return number * number


def slow_if_even(number: int) -> int:
    time.sleep(0.1 if number % 2 == 0 else 0.0)
    return number


def tasks(count: int) -> dict[str, int]:
    return {f"case_{number}": number for number in range(count)}


@pytest.mark.parametrize("processes", [0, 1, 3, 20])
def test_results_stand_in_the_order_of_the_tasks(processes):
    results = run_parallel(slow_if_even, tasks(6), processes, "counting")
    assert list(results.items()) == list(tasks(6).items())


def test_no_tasks():
    assert run_parallel(square, {}, 4, "counting") == {}


def test_a_worker_does_many_tasks_with_one_thread():
    import torch

    def identity(number: int) -> tuple[int, int]:
        return os.getpid(), torch.get_num_threads()

    answers = run_parallel(identity, tasks(12), 2, "counting")
    pids = {pid for pid, _ in answers.values()}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert {threads for _, threads in answers.values()} == {1}


def test_a_worker_killed_once_is_retried_and_the_others_go_on(tmp_path, caplog):
    def die_once(number: int) -> int:
        mark = tmp_path / "died"
        if number == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return square(number)

    results = run_parallel(die_once, tasks(8), 2, "preprocessing")
    assert results == {name: number * number for name, number in tasks(8).items()}
    assert "case_2" in caplog.text
    assert "SIGKILL" in caplog.text


def test_a_worker_killed_twice_names_case_and_signal(tmp_path):
    def die(number: int) -> int:
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / str(number)).touch()
        return number

    with pytest.raises(EnvironmentProblem, match=r"case_2.*SIGKILL") as caught:
        run_parallel(die, tasks(8), 4, "preprocessing")
    assert caught.value.why == "the second time it was the only worker"
    assert caught.value.run == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "3", "4", "5", "6", "7"]


def test_lack_of_memory_is_said_only_where_the_kernel_counted_it(monkeypatch):
    def die(number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number

    counts = iter([5, 6])
    monkeypatch.setattr(workers, "oom_kills", lambda: next(counts))
    with pytest.raises(EnvironmentProblem) as caught:
        run_parallel(die, tasks(2), 2, "preprocessing")
    assert caught.value.why.startswith("memory ran out")


def test_a_worker_that_exits_is_not_a_result():
    def leave(number: int) -> int:
        if number == 1:
            os._exit(7)
        return number

    with pytest.raises(EnvironmentProblem, match=r"case_1.*exit code 7"):
        run_parallel(leave, tasks(3), 2, "preprocessing")


@pytest.mark.parametrize("processes", [1, 2])
def test_our_errors_arrive_as_they_are(processes):
    def fail(number: int) -> int:
        raise DataError("two spacings", where=f"scan {number}", why="1 mm, 2 mm", run="repair it")

    with pytest.raises(DataError) as caught:
        run_parallel(fail, {"a": 5, "b": 5}, processes, "reading")
    assert caught.value.as_dict() == {
        "error": "two spacings",
        "where": "scan 5",
        "why": "1 mm, 2 mm",
        "run": "repair it",
        "exit_code": 3,
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_other_errors_name_the_case_and_keep_the_traceback(processes):
    def divide(number: int) -> float:
        return 1 / number

    with pytest.raises(NnsslError, match="case_0 failed") as caught:
        run_parallel(divide, tasks(3), processes, "dividing")
    assert "ZeroDivisionError" in str(caught.value)
    cause = caught.value.__cause__
    assert isinstance(cause, WorkerTraceback if processes > 1 else ZeroDivisionError)
    if processes > 1:
        assert "in divide" in str(cause)


@pytest.mark.parametrize("processes", [1, 2])
def test_memory_errors_have_their_exit_code(processes):
    def fill(number: int) -> int:
        raise MemoryError

    with pytest.raises(OutOfMemory, match="case_") as caught:
        run_parallel(fill, tasks(3), processes, "reading")
    assert caught.value.run == ("the same command with fewer processes (-np 1)" if processes == 2 else "")


class OddDataError(DataError):
    """Pickle cannot make this error again from its one argument."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}", where="scan 5")


class OddResult:
    def __init__(self, content: int) -> None:
        self.content = content

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return OddResult, ()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_that_pickle_cannot_make_again_keeps_its_parts(processes):
    def fail(number: int) -> int:
        raise OddDataError("one", "two")

    with pytest.raises(DataError, match="one and two") as caught:
        run_parallel(fail, tasks(2), processes, "reading")
    assert caught.value.where == "scan 5"


def test_a_result_that_pickle_cannot_make_again_names_its_case():
    with pytest.raises(NnsslError, match=r"case_\d failed") as caught:
        run_parallel(OddResult, tasks(2), 2, "reading")
    assert "TypeError" in caught.value.why


def test_stubborn_workers_are_killed_together(tmp_path):
    def ignore(number: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (tmp_path / str(os.getpid())).touch()
        while number == 0 and len(list(tmp_path.iterdir())) < 4:
            time.sleep(0.01)
        if number == 0:
            raise DataError("stop")
        time.sleep(60)

    with pytest.raises(DataError):
        run_parallel(ignore, tasks(4), 4, "sleeping")
    stopped = max(path.stat().st_mtime for path in tmp_path.iterdir())
    assert time.time() - stopped < 5
    assert wait_until_gone([int(path.name) for path in tmp_path.iterdir()], 0.5) == []


def test_a_result_that_cannot_be_sent_is_an_error():
    def unpicklable(number: int) -> object:
        return lambda: number

    with pytest.raises(NnsslError, match=r"case_\d failed"):
        run_parallel(unpicklable, tasks(2), 2, "reading")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pids: list[int], seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def test_an_error_ends_the_other_workers(tmp_path):
    def fail_or_sleep(number: int) -> None:
        (tmp_path / str(os.getpid())).touch()
        if number == 0:
            while len(list(tmp_path.iterdir())) < 3:
                time.sleep(0.01)
            raise DataError("stop")
        time.sleep(60)

    with pytest.raises(DataError):
        run_parallel(fail_or_sleep, tasks(3), 3, "sleeping")
    assert wait_until_gone([int(path.name) for path in tmp_path.iterdir()], 1.0) == []


SLEEPERS = """
import os, sys, time
from pathlib import Path
from nnssl.system.workers import run_parallel

def sleep(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    run_parallel(sleep, {"a": sys.argv[1], "b": sys.argv[1]}, 2, "sleeping")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_do_not_outlive_their_parent(tmp_path, how):
    script, marks = tmp_path / "sleepers.py", tmp_path / "marks"
    script.write_text(SLEEPERS)
    marks.mkdir()
    root = Path(workers.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, str(script), str(marks)], env=environment, stderr=subprocess.PIPE) as parent:
        end = time.monotonic() + 20
        while len(list(marks.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        pids = [int(path.name) for path in marks.iterdir()]
        parent.send_signal(how)
    assert len(pids) == 2
    assert wait_until_gone(pids, 3.0) == []


def test_inside_a_worker_the_work_is_done_in_place():
    def nested(number: int) -> list[int]:
        return list(run_parallel(square, {"a": number, "b": number + 1}, 2, "nested").values())

    assert run_parallel(nested, tasks(2), 2, "nesting") == {"case_0": [0, 1], "case_1": [1, 4]}


def test_long_runs_without_a_terminal_say_how_far_they_are(monkeypatch, caplog):
    monkeypatch.setattr(workers, "QUIET_PROGRESS_S", -1.0)
    with caplog.at_level("INFO"):
        run_parallel(square, tasks(40), 1, "counting")
    assert [record.message.split(" after")[0] for record in caplog.records] == [
        f"counting: {done} of 40" for done in (10, 20, 30, 40)
    ]


FORKED_AFTER_BLOSC2 = """
import blosc2, numpy as np
from nnssl.system.workers import run_parallel

def compressed(seed):
    array = np.random.default_rng(seed).random((1, 100, 200, 60), dtype=np.float32)
    stored = blosc2.asarray(array, chunks=(1, 50, 100, 60), blocks=(1, 25, 25, 30))
    return bool((stored[:] == array).all())

if __name__ == "__main__":
    blosc2.set_nthreads(2)
    assert compressed(0)  # starts threads that a fork does not take along
    assert run_parallel(compressed, {"a": 1, "b": 2}, 2, "compressing") == {"a": True, "b": True}
"""


def test_blosc2_works_in_workers_after_it_ran_threads_here(tmp_path):
    script = tmp_path / "compress.py"
    script.write_text(FORKED_AFTER_BLOSC2)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, str(script)], env=environment, check=True, timeout=60)


GUARDED = 'if __name__ == "__main__":\n    '
CALL = "workers.run_parallel(str.upper, {'a': 'x', 'b': 'y'}, 2, 'work')"


@pytest.mark.parametrize("guard", ["", GUARDED])
def test_a_script_without_guard_is_told_the_line_to_add_at_once(guard: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from nnssl.system import workers\nworkers.START_METHOD = 'spawn'\n{guard}print({CALL})\n")
    started = time.monotonic()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    if guard:
        assert done.stdout.strip() == "{'a': 'X', 'b': 'Y'}"
    else:
        assert done.returncode == 1
        assert 'if __name__ == "__main__":' in done.stderr
        assert "memory" not in done.stderr
        assert time.monotonic() - started < 10


def test_a_copy_of_the_script_says_so(monkeypatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UsageError, match="would run the script again"):
        workers.check_main_guard()
