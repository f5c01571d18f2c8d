"""Time and activation memory of every method relative to nnU-Net's supervised step, measured in one run.

The result is the file that `nnssl_methods` and the documentation show:

    python -m benchmarks.chooser DATASET CONFIGURATION [CONFIGURATION ...] -o nnssl/costs.json
                                 [-p PLANS] [-device cpu] [--rounds 5] [--steps 2]

Time is that of a step from batch ready to optimiser step in the middle of a run, with unlabelled patches. The steps of
all methods take turns in blocks; the ratio to SupervisedTrainer is taken in each round, and the median is written.
Memory is the largest number of bytes that a step holds for its backward pass at any moment, without weights; the
outputs of networks that only predict are not held. Labelling whole scans, validation and data loading are no
part of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.steps import seconds, trainers_and_batches
from nnssl.registry import METHODS

BASELINE = "SupervisedTrainer"


class SavedBytes:
    """The bytes of storage that autograd holds at the moment, and the largest number so far.

    Args:
        weights: tensors that do not count.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.left_out = {weight.untyped_storage().data_ptr() for weight in weights}
        self.held: dict[int, int] = {}  # how often each storage is held
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> _Held:
        """Count a tensor that autograd saves; a storage that is saved twice counts once."""
        return _Held(tensor, self)

    def change(self, tensor: Tensor, by: int) -> None:
        """Add a holder of a storage, or take one away."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self.left_out:
            return
        before, after = self.held.get(place, 0), self.held.get(place, 0) + by
        self.held[place] = after
        self.now += storage.nbytes() * ((after > 0) - (before > 0))
        self.peak = max(self.peak, self.now)


class _Held:
    """A saved tensor; autograd drops this object together with the tensor."""

    def __init__(self, tensor: Tensor, ledger: SavedBytes) -> None:
        self.tensor, self.ledger = tensor, ledger
        ledger.change(tensor, 1)

    def __del__(self) -> None:
        self.ledger.change(self.tensor, -1)


def peak_saved_bytes(step: Callable[[], object], weights: list[Tensor]) -> int:
    """Return the largest number of bytes that a step holds for its backward pass, without the weights."""
    ledger = SavedBytes(weights)
    with saved_tensors_hooks(ledger.pack, lambda held: held.tensor):
        step()
    return ledger.peak


def costs(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return time and memory of every method in units of the baseline, for one configuration."""
    trainers, batches = trainers_and_batches(arguments)
    del trainers["nnUNetTrainer"]
    turns = dict.fromkeys(trainers, 0)

    def step(name: str) -> None:
        turns[name] += 1
        trainers[name].train_step(batches[turns[name] % len(batches)])

    steps = {name: (lambda name=name: step(name)) for name in trainers}
    times = seconds(steps, arguments.rounds, arguments.steps, lambda: None)
    weights = {
        name: [p for network, _ in made.trained for p in network.parameters()] for name, made in trainers.items()
    }
    saved = {name: peak_saved_bytes(steps[name], weights[name]) for name in trainers}
    return {
        name: {
            "time": round(statistics.median(a / b for a, b in zip(times[name], times[BASELINE], strict=True)), 2),
            "memory": round(saved[name] / saved[BASELINE], 2),
        }
        for name in trainers
    }


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure all configurations and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configurations", nargs="+")
    parser.add_argument("-o", required=True, metavar="FILE")
    parser.add_argument("-p", default="nnUNetPlans", help="plans name, with its tag")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    fixed = {"device": "cpu", "labelled": None, "tr": list(METHODS), "set": [], "bf16": False}
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    torch.set_num_threads(threads)
    os.environ["nnUNet_n_proc_DA"] = "0"
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["nnUNet_results"] = scratch
        found = {
            name: costs(argparse.Namespace(**vars(arguments), **fixed, configuration=name))
            for name in arguments.configurations
        }
    content = {
        "command": shlex.join(["python", "-m", "benchmarks.chooser", *sys.argv[1:]]),
        "machine": f"{processor()}, {threads} thread(s), torch {torch.__version__.partition('+')[0]}",
        "configurations": found,
    }
    Path(arguments.o).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
