"""Disk and time of several label budgets of one data set, whose plans share preprocessed cases.

    python -m benchmarks.budgets [--labelled 40] [--unlabelled 120] [--budgets 5 10 20] [--channel MRI]

The scans are of 32 x 64 x 64 voxels with noise, of one voxel size. Each budget is planned with the commands' own
defaults and `-hardware cpu`. The disk is that of all files in the preprocessed folder of the data set, each file once
however many names it has. `alone` is the disk of the same budget in an empty folder. With `--channel CT` no two budgets
have the same voxels, because the normalisation uses the intensities of the labelled scans.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK

from nnssl.system.files import write_json

PLAN = "import sys, nnssl_commands; sys.exit(nnssl_commands.plan_and_preprocess())"
ARGUMENTS = ("-d", "992", "-hardware", "cpu", "--no_pbar")
SHAPE = (32, 64, 64)
DATASET = "Dataset992_Budgets"


def make_dataset(folder: Path, labelled: int, unlabelled: int, channel: str) -> None:
    """Write scans of smooth noise around a bright box, which is their foreground."""
    label = np.zeros(SHAPE, np.uint8)
    label[8:24, 16:48, 16:48] = 1
    for part in ("imagesTr", "labelsTr", "imagesUn"):
        (folder / part).mkdir(parents=True)
    for number in range(labelled + unlabelled):
        voxels = np.random.default_rng(number).normal(100, 20, SHAPE) + 50 * label
        image, name = SimpleITK.GetImageFromArray(voxels.astype(np.int16)), f"case_{number:05d}"
        part = "imagesTr" if number < labelled else "imagesUn"
        SimpleITK.WriteImage(image, str(folder / part / f"{name}_0000.nii.gz"))
        if number < labelled:
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(label), str(folder / "labelsTr" / f"{name}.nii.gz"))
    entries = {"channel_names": {"0": channel}, "labels": {"background": 0, "box": 1}, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", {**entries, "numTraining": labelled})


def planned(preprocessed: Path, configuration: str, budget: int) -> float:
    """Plan and preprocess one budget; return the wall-clock seconds of the command."""
    os.environ["nnUNet_preprocessed"] = str(preprocessed)
    command = [sys.executable, "-c", PLAN, *ARGUMENTS, "-c", configuration, "-labelled", str(budget)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - start


def disk_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder, each file once."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({(found.st_dev, found.st_ino): found.st_blocks * 512 for found in files}.values())


def main() -> None:
    """Print time and disk of every budget, beside other budgets and alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=int, default=40)
    parser.add_argument("--unlabelled", type=int, default=120)
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--channel", default="MRI")
    parser.add_argument("-c", dest="configuration", default="3d_fullres")
    arguments = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    scans = f"{arguments.labelled} labelled and {arguments.unlabelled} unlabelled scans"
    print(f"{scans}, channel {arguments.channel}, {arguments.configuration}")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ |= {"nnUNet_raw": str(root / "raw"), "nnUNet_results": str(root / "results")}
        make_dataset(root / "raw" / DATASET, arguments.labelled, arguments.unlabelled, arguments.channel)
        before = 0
        for budget in arguments.budgets:
            together, alone = root / "preprocessed", root / f"alone_{budget}"
            seconds = planned(together, arguments.configuration, budget)
            seconds_alone = planned(alone, arguments.configuration, budget)
            after, whole = disk_bytes(together), disk_bytes(alone)
            added = f"adds {(after - before) / 1e6:7.2f} MB ({100 * (after - before) / whole:5.1f} %)"
            other = f"alone {whole / 1e6:7.2f} MB in {seconds_alone:6.1f} s"
            print(f"budget {budget:>3}: {added} in {seconds:6.1f} s; {other}", flush=True)
            before = after


if __name__ == "__main__":
    main()
