"""Training with 10,000 unlabelled scans against 100: start of the run, time of a step, memory over the iterations.

    python -m benchmarks.many_scans [--scans 10000] [--few 100] [--iterations 2000]

Two labelled and a few unlabelled scans of 8 x 16 x 16 voxels are planned; further cases are hard links to preprocessed
ones. The two runs train at the same time, so that other load slows both alike. Memory is that of the trainer with its
workers; a page that several share counts once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.planning import make_dataset, planned
from nnssl.system.files import read_json, write_json

DATASET = "Dataset991_Many"
PLANNED = 12  # scans that are really preprocessed, two of them labelled
EVERY = 100  # iterations between two looks at the memory
MEASURED = """
import json, os, sys, time
started = float(sys.argv.pop(1))
import nnssl_commands
from benchmarks.large_scan import memory_of
from nnssl_trainers.methods.mean_teacher import MeanTeacherTrainer
step, times, memory = MeanTeacherTrainer.train_step, [], []
def measured(self, batch):
    before = time.time()
    result = step(self, batch)
    times.append((before, time.time()))
    if len(times) % EVERY == 0:
        memory.append(memory_of(os.getpid()))
    return result
MeanTeacherTrainer.train_step = measured
code = nnssl_commands.train()
print(json.dumps({"start": times[0][0] - started, "steps": [b - a for a, b in times], "memory": memory}))
sys.exit(code)
"""


def add_cases(preprocessed: Path, scans: int) -> None:
    """Let every fold have `scans` unlabelled cases, hard links to those that are there."""
    (folder,) = preprocessed.glob("nnUNetPlans_3d_fullres*_unlabelled")
    there = sorted(file.name.removesuffix(".pkl") for file in folder.glob("*.pkl"))
    names = [*there]
    for number in range(scans - len(there)):
        name, source = f"copy_{number:05d}", there[number % len(there)]
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            os.link(folder / f"{source}{ending}", folder / f"{name}{ending}")
        names.append(name)
    manifest = folder.with_name(f"{folder.name}.manifest.json")
    content = read_json(manifest)
    cases = {name: next(iter(content["cases"].values())) for name in names}
    write_json(manifest, {**content, "cases": {**cases, **content["cases"]}})
    file = preprocessed / "splits_final.json"
    write_json(file, [{**fold, "unlabelled": names} for fold in read_json(file)])


def start_run(root: Path, iterations: int) -> subprocess.Popen[str]:
    """Start a training in a folder of its own."""
    environment = {**os.environ, **{f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}}
    environment |= {"nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1", "nnUNet_compile": "f"}
    code = "import time, sys; sys.argv.insert(1, str(time.time()))\n" + MEASURED.replace("EVERY", str(EVERY))
    command = [sys.executable, "-c", code, "991", "3d_fullres", "all", "-tr", "MeanTeacherTrainer"]
    command += ["-num_iterations", str(iterations), "-device", "cpu"]
    with (root / "log.txt").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)


def main() -> None:
    """Print start, step and memory of both runs, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        roots = {count: Path(name) / str(count) for count in (arguments.scans, arguments.few)}
        first = roots[arguments.scans]
        for variable in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{variable}"] = str(first / variable)
        make_dataset(first / "raw", PLANNED)
        planned()
        shutil.copytree(first, roots[arguments.few])
        for count, root in roots.items():
            (root / "results").mkdir(exist_ok=True)
            add_cases(root / "preprocessed" / DATASET, count)
        runs = {count: start_run(root, arguments.iterations) for count, root in roots.items()}
        found = {}
        for count, process in runs.items():
            output = process.communicate()[0]
            if process.returncode:
                raise SystemExit((roots[count] / "log.txt").read_text())
            found[count] = json.loads(output.splitlines()[-1])
    for count, run in found.items():
        step, memory = statistics.median(run["steps"]), run["memory"]
        spread = (max(memory) - min(memory)) / memory[0]
        held = f"{memory[0] / 1e6:.0f} MB after {EVERY} iterations, {memory[-1] / 1e6:.0f} MB after {len(run['steps'])}"
        print(f"{count:>6} scans: start {run['start']:5.1f} s, step {1000 * step:6.1f} ms")
        print(f"  memory {held}, spread {100 * spread:.1f} %")
    many, few = (found[count] for count in roots)
    ratio = statistics.median(many["steps"]) / statistics.median(few["steps"])
    print(
        f"step {ratio:.3f}, start {many['start'] - few['start']:+.1f} s; load of the machine {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
