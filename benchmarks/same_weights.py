"""Compare two checkouts: does every method end with the same weights, bit for bit, after a short seeded run?

    python -m benchmarks.same_weights OLD_CHECKOUT NEW_CHECKOUT [--iterations 20] [--trainers DSMTTrainer …]

Each checkout writes the phantom, plans it and trains every method with its own commands. The script prints one line
for each method and exits with 1 if the weights of one differ. Refactoring must not change a result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

COMMAND = "import sys; from importlib import import_module; sys.exit(import_module(sys.argv[1]).main(sys.argv[2:]))"
PHANTOM = ("-d", "901", "-labelled", "5", "-unlabelled", "5", "-test", "1", "-shape", "20", "24", "24")


def run(checkout: Path, folder: Path, command: str, *arguments: str) -> str:
    """Run one `nnssl_*` command of a checkout with nnU-Net's folders below `folder`; return its standard output."""
    environment = {**os.environ, "nnUNet_compile": "f", "nnUNet_n_proc_DA": "1"}
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        environment[variable] = str(folder / variable)
    words = [sys.executable, "-c", COMMAND, f"nnssl.cli.{command}", *arguments]
    done = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{checkout}: {command} {' '.join(arguments)} failed\n{done.stderr}")
    return done.stdout


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 of the deployed network's weights in the only final checkpoint below a folder."""
    (file,) = folder.rglob("checkpoint_final.pth")
    digest = hashlib.sha256()
    for name, tensor in torch.load(file, weights_only=True)["network_weights"].items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def trained(checkout: Path, trainers: list[str], iterations: int) -> dict[str, str]:
    """Return the hash of the final weights of every trainer."""
    hashes = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(checkout, folder, "phantom", *PHANTOM)
        run(checkout, folder, "plan_and_preprocess", "-d", "901", "-c", "3d_fullres", "-budget", "cpu")
        for trainer in trainers:
            arguments = ("-tr", trainer, "-num_iterations", str(iterations), "-device", "cpu", "--no_val")
            run(checkout, folder, "train", "901", "3d_fullres", "0", *arguments)
            hashes[trainer] = weights_hash(next((folder / "nnUNet_results").rglob(f"{trainer}__*")))
    return hashes


def main() -> int:
    """Train in both checkouts and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--trainers", nargs="+", help="class names (default: all methods of the old checkout)")
    arguments = parser.parse_args()
    old, new = arguments.old.resolve(), arguments.new.resolve()
    listed = json.loads(run(old, old, "methods", "--json"))
    trainers = arguments.trainers or [method["class"] for method in listed]
    before, after = (trained(checkout, trainers, arguments.iterations) for checkout in (old, new))
    for trainer in trainers:
        verdict = "same" if before[trainer] == after[trainer] else "DIFFERENT"
        print(f"{trainer:<20} {verdict:<10} {before[trainer][:16]} {after[trainer][:16]}")
    return int(before != after)


if __name__ == "__main__":
    sys.exit(main())
