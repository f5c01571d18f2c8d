"""Peak memory and time of stock nnU-Net's prediction command and of ours on one large synthetic CT.

    python -m benchmarks.large_scan [-shape 400 512 512] [-classes 15] [--probabilities]

The voxels of the scan have 1.0 x 0.8 x 0.8 mm, those of the plans 1.5 mm; the network is tiny, so that the rest
dominates. Memory is that of the command with all of its processes, where shared pages count once (proportional set
size), sampled ten times a second; that of ours is also compared with what the command announces.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK
import torch

from benchmarks.predict import OURS, STOCK, compare
from nnssl.system.files import read_json, write_json

SPACING = (0.8, 0.8, 1.0)  # in the file's order x, y, z
PLANNED = 1.5
PATCH = (96, 96, 96)
OPTIONS = ("-f", "0", "-device", "cpu", "-step_size", "1", "--disable_tta")


def make_scan(folder: Path, shape: tuple[int, ...]) -> Path:
    """Write a scan of smooth blobs in Hounsfield units as 16-bit integers."""
    folder.mkdir()
    coarse = np.random.default_rng(0).normal(0, 400, [1, 1, *(size // 16 + 1 for size in shape)])
    voxels = torch.nn.functional.interpolate(torch.from_numpy(coarse).float(), shape, mode="trilinear")[0, 0]
    image = SimpleITK.GetImageFromArray(voxels.clamp_(-1000, 2000).short().numpy())
    image.SetSpacing(SPACING)
    SimpleITK.WriteImage(image, str(folder / "scan_0000.nii.gz"), True, 1)
    return folder


def make_model(results: Path, classes: int) -> Path:
    """Write a tiny model with random weights for 1.5 mm and nnU-Net's default resampling."""
    from nnssl.inference.predictor import Predictor
    from tests.inference.model_for_tests import write_model

    folder = write_model(results, patch=PATCH, features=(4, 8))
    plans = read_json(folder / "plans.json")
    configuration = plans["configurations"]["3d_fullres"]
    configuration["spacing"] = [PLANNED] * 3
    configuration["resampling_fn_data_kwargs"] = {**configuration["resampling_fn_data_kwargs"], "order": 3}
    write_json(folder / "plans.json", plans)
    description = read_json(folder / "dataset.json")
    names = ("background", *(f"organ {number}" for number in range(1, classes)))
    write_json(folder / "dataset.json", {**description, "labels": {name: n for n, name in enumerate(names)}})
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=True)
    torch.manual_seed(0)
    for name in list(content["network_weights"]):
        if ".seg_layers." in name:
            old = content["network_weights"][name]
            content["network_weights"][name] = torch.randn(classes, *old.shape[1:])
    torch.save(content, checkpoint)
    Predictor.from_folder(folder, device="cpu")  # the weights fit
    return folder


def memory_of(process: int) -> int:
    """Return the bytes of a process and all of its descendants; a page that several share counts once."""
    total, waiting = 0, [process]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = (folder / "smaps_rollup").read_text(encoding="ascii")
            total += 1024 * int(text.partition("\nPss:")[2].split()[0])
        with contextlib.suppress(OSError):
            for thread in (folder / "task").iterdir():
                waiting += [int(word) for word in (thread / "children").read_text(encoding="ascii").split()]
    return total


def run(code: str, arguments: list[object], log: Path) -> tuple[float, int]:
    """Return wall-clock seconds and peak memory in bytes of one command."""
    with log.open("w") as file:
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=file, stderr=file)
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(log.read_text())
    return seconds, peak


def main() -> None:
    """Print times, peaks, their ratios and the announced peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-shape", type=int, nargs=3, default=(400, 512, 512), help="z y x, default 400 512 512")
    parser.add_argument("-classes", type=int, default=15)
    parser.add_argument("--probabilities", action="store_true", help="also write the probabilities")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["nnUNet_results"] = str(folder)
        scans, model = make_scan(folder / "imagesTs", tuple(a.shape)), make_model(folder, a.classes)
        options = [*OPTIONS, *(["--save_probabilities"] if a.probabilities else [])]
        found = {}
        for which, code in (("ours", OURS), ("stock", STOCK)):
            arguments = ["-i", scans, "-o", folder / which, "-m", model, *options]
            arguments += ["--json"] if which == "ours" else []
            found[which] = run(code, arguments, folder / f"{which}.log")
            print(f"{which:<6} {found[which][0]:7.1f} s   at most {found[which][1] / 1e9:.2f} GB", flush=True)
        lines = (folder / "ours.log").read_text().splitlines()
        announced = next(json.loads(line)["memory_bytes"] for line in lines if line.startswith("{"))
        voxels, differing = compare(folder / "stock", folder / "ours")
    print(f"announced {announced / 1e9:.2f} GB, measured / announced {found['ours'][1] / announced:.2f}")
    memory, seconds = (found["ours"][i] / found["stock"][i] for i in (1, 0))
    print(f"ours / stock: memory {memory:.2f}, time {seconds:.2f}")
    print(f"{differing} of {voxels} voxels differ; load of the machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
