"""Time of a large study: the plan of 10,000 runs, and the status of 10,000 finished runs.

`python -m benchmarks.study` prints both, measured as a user meets them: a new process each, with all its imports. Aims:
the plan in under 5 s, the status in under 2 s.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from nnssl.sweep.api import keep_study
from nnssl.sweep.child import python_command
from nnssl.sweep.store import Store
from nnssl.sweep.study import Study

SEEDS = 2500
FLAGS = "-d 901 -c 2d -tr SupervisedTrainer FixMatchTrainer -labelled 5 all -num_iterations 100"


def measure(words: list[str]) -> float:
    """Return the seconds of a command; its output is thrown away.

    Raises:
        RuntimeError: the command failed.
    """
    begin = time.perf_counter()
    ended = subprocess.run(words, stdout=subprocess.DEVNULL, check=False)
    if ended.returncode:
        raise RuntimeError(f"exit code {ended.returncode}")
    return time.perf_counter() - begin


def main() -> None:
    """Measure in a temporary folder."""
    with tempfile.TemporaryDirectory() as root:
        for name in ("raw", "preprocessed", "results"):
            folder = Path(root) / name / "Dataset901_Phantom"
            folder.mkdir(parents=True)
            os.environ[f"nnUNet_{name}"] = str(folder.parent)
        seeds, study = list(map(str, range(SEEDS))), Path(root) / "study"
        plan = measure(python_command("sweep", [*FLAGS.split(), "-seeds", *seeds, "-o", str(study), "--dry_run"]))
        print(f"plan of {4 * SEEDS} runs: {plan:.2f} s")
        asked = Study("901", ("2d",), ("SupervisedTrainer", "FixMatchTrainer"), labelled=("5", "all"),
                      seeds=tuple(range(SEEDS)))  # fmt: skip
        keep_study(asked, study)
        with Store(study) as store, store._database as database:
            database.execute("UPDATE tasks SET state = 'done'")
        status = measure(python_command("sweep", ["-o", str(study), "--status"]))
        print(f"status of {4 * SEEDS} finished runs: {status:.2f} s")


if __name__ == "__main__":
    main()
