"""Time of stock nnU-Net's prediction command over ours, as whole processes on the same scans and model.

    python -m benchmarks.predict                      # 40 small synthetic scans, a model fitted to them for a minute
    python -m benchmarks.predict -m MODEL -i IMAGES   # a trained model folder and a folder of scans
    python -m benchmarks.predict -against CHECKOUT    # nnssl_predict of another checkout in place of stock nnU-Net

The two commands take turns, the first one changing from pair to pair. The masks of every pair are compared.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK
import torch

STOCK = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as run; run()"
OURS = "import sys, nnssl_commands; sys.exit(nnssl_commands.predict())"


def main() -> None:
    """Run the pairs and print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", type=Path, help="model folder")
    parser.add_argument("-i", type=Path, help="folder of scans")
    parser.add_argument("-f", default="0", help="fold, default 0")
    parser.add_argument("-cases", type=int, default=40, help="number of synthetic scans, default 40")
    parser.add_argument("-repeats", type=int, default=3, help="number of pairs, default 3")
    parser.add_argument("-device", default="cpu", help="default cpu")
    parser.add_argument("-against", type=Path, help="another checkout of nnssl, in place of stock nnU-Net")
    a = parser.parse_args()
    code = OURS if a.against else STOCK
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = a.i or make_scans(folder / "imagesTs", a.cases)
        model = a.m or make_model(folder, scans)
        ratios, cpu_ratios = [], []
        for repeat in range(a.repeats):
            seconds, cpu = {}, {}
            for which in (("stock", "ours"), ("ours", "stock"))[repeat % 2]:
                output = folder / f"{which}_{repeat}"
                arguments = ["-i", scans, "-o", output, "-m", model, "-f", a.f, "-device", a.device]
                which_code, checkout = (code, a.against) if which == "stock" else (OURS, None)
                seconds[which], cpu[which] = timed(which_code, arguments, folder / f"{which}.log", checkout)
            ratios.append(seconds["stock"] / seconds["ours"])
            cpu_ratios.append(cpu["stock"] / cpu["ours"])
            voxels, differing = compare(folder / f"stock_{repeat}", folder / f"ours_{repeat}")
            print(
                f"pair {repeat + 1}: {'other' if a.against else 'stock'} {seconds['stock']:.1f} s, "
                f"ours {seconds['ours']:.1f} s, ratio {ratios[-1]:.2f}, of CPU time {cpu_ratios[-1]:.2f}, "
                f"{differing} of {voxels} voxels differ"
            )
        print(f"median ratio {statistics.median(ratios):.2f}, of CPU time {statistics.median(cpu_ratios):.2f}")


def timed(code: str, arguments: list[object], log: Path, checkout: Path | None = None) -> tuple[float, float]:
    """Return the wall-clock seconds and the CPU seconds of one command from start to end, in a checkout if given."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())} if checkout else dict(os.environ)
    with log.open("w") as file:
        before, start = os.times(), time.perf_counter()
        ended = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=checkout, check=False
        )
        seconds, after = time.perf_counter() - start, os.times()
    if ended.returncode:
        raise SystemExit(log.read_text())
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


def compare(stock: Path, ours: Path) -> tuple[int, int]:
    """Return the number of voxels in all masks, and of those with different labels."""
    voxels = differing = 0
    for file in sorted(stock.glob("*.nii.gz")):
        first, second = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(f / file.name))) for f in (stock, ours))
        voxels += first.size
        differing += int(np.count_nonzero(first != second))
    return voxels, differing


def make_model(folder: Path, scans: Path) -> Path:
    """Write a model of the size that the cpu budget plans, fitted for a minute to labels by intensity."""
    from nnssl.inference.predictor import Predictor
    from tests.inference.model_for_tests import write_model

    patch = (40, 56, 40)
    model = write_model(folder, patch=patch, features=(16, 32, 64, 128))
    network = Predictor.from_folder(model, device="cpu").network
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for file in itertools.islice(itertools.cycle(sorted(scans.iterdir())), 100):
        array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        image = torch.from_numpy((array - array.mean()) / array.std())
        image = torch.nn.functional.pad(
            image, [n for s, p in zip(image.shape, patch, strict=True) for n in (0, p - s)][::-1]
        )
        labels = (image > 0.3).long() + (image > 1.2).long()
        loss = torch.nn.functional.cross_entropy(network(image[None, None]), labels[None])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "network_weights": network.state_dict()}, checkpoint)
    return model


def make_scans(folder: Path, count: int) -> Path:
    """Write small scans of varying size."""
    from tests.inference.model_for_tests import make_scan

    folder.mkdir()
    rng = np.random.default_rng(0)
    for case in range(count):
        shape = tuple(int(size) for size in rng.integers((30, 42, 30), (41, 60, 41)))
        scan = SimpleITK.SmoothingRecursiveGaussian(make_scan(case, shape=shape, spacing=(1.0, 1.0, 1.0)), 1.5)
        SimpleITK.WriteImage(scan, str(folder / f"case_{case:03d}_0000.nii.gz"))
    return folder


if __name__ == "__main__":
    main()
