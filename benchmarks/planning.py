"""Planning many scans: the first time, and again with kept facts and with a reading of every scan.

    python -m benchmarks.planning [--scans 1000] [--rounds 3] [--fewer 250 500]

The data set has two labelled scans and many unlabelled ones of 8 x 16 x 16 voxels. Of a data set that did not change,
two commands take turns, the first one changing from round to round; both end with the same files. Before, `--fewer`
plans and preprocesses data sets with fewer scans for the first time, to compare the time of each scan. CPU time counts
all processes of the command, and says more than seconds beside other load. Memory is the peak of the largest process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK

from nnssl.system.files import write_json

PLAN = "import sys, nnssl_commands; sys.exit(nnssl_commands.plan_and_preprocess())"
ARGUMENTS = ("-d", "991", "-c", "3d_fullres", "-hardware", "cpu", "--no_pbar")
SHAPE = (8, 16, 16)
LABELLED = 2


def make_dataset(root: Path, scans: int) -> None:
    """Write `scans` scans of noise; each labelled one has a box as its foreground."""
    folder = root / "Dataset991_Many"
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 4:12, 4:12] = 1
    for part in ("imagesTr", "labelsTr", "imagesUn"):
        (folder / part).mkdir(parents=True)
    for number in range(scans):
        voxels = np.random.default_rng(number).normal(100, 20, SHAPE).astype(np.float32) + 50 * label
        images = folder / ("imagesTr" if number < LABELLED else "imagesUn")
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(images / f"case_{number:05d}_0000.nii.gz"))
        if number < LABELLED:
            name = folder / "labelsTr" / f"case_{number:05d}.nii.gz"
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(label), str(name))
    entries = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "box": 1}, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", {**entries, "numTraining": LABELLED})


class Cost(NamedTuple):
    """What one command took: wall-clock seconds, CPU seconds, and the peak of memory in MB."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def planned(*options: str) -> Cost:
    """Run one planning command and return its cost from start to end."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", PLAN, *ARGUMENTS, *options], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        passed = time.perf_counter() - start
        log.seek(0)
        if status:
            raise SystemExit(log.read().decode())
    return Cost(passed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def first_planning(root: Path, scans: int) -> None:
    """Write a data set below `root`, point nnU-Net there, and print the cost of its first planning."""
    for variable in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{variable}"] = str(root / variable)
    make_dataset(root / "raw", scans)
    cost = planned()
    what = f"{scans} scans, planned and preprocessed for the first time"
    each = f"{1000 * cost.cpu_seconds / scans:.2f} ms of CPU a scan"
    print(f"{what}: {cost.seconds:.1f} s, {each}, at most {cost.peak_mb:.0f} MB", flush=True)


def main() -> None:
    """Print the times, their ratio and the peak of memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fewer", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for scans in arguments.fewer:
        with tempfile.TemporaryDirectory() as name:
            first_planning(Path(name), scans)
    with tempfile.TemporaryDirectory() as name:
        first_planning(Path(name), arguments.scans)
        kept: list[Cost] = []
        again: list[Cost] = []
        for number in range(arguments.rounds):
            for which in ((kept, again), (again, kept))[number % 2]:
                which.append(planned() if which is kept else planned("--verify"))
        size = (Path(name) / "preprocessed/Dataset991_Many/facts.sqlite").stat().st_size
    ratios = [slow.seconds / fast.seconds for fast, slow in zip(kept, again, strict=True)]
    print(f"facts.sqlite {size / 1e6:.2f} MB")
    for what, runs in (("facts kept", kept), ("--verify", again)):
        times, cpu, peaks = zip(*runs, strict=True)
        spent = f"{statistics.median(times):7.2f} s, CPU {statistics.median(cpu):7.2f} s"
        print(f"planned again, {what:<12} {spent}, at most {max(peaks):.0f} MB")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
