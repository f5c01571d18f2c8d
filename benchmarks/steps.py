"""Step times as ratios: SupervisedTrainer against stock nnU-Net, MeanTeacherTrainer against the sum of its parts.

A step runs from batch ready to optimiser step. The loaders are idle: all batches are drawn before. The trainers take
turns in blocks, so that a machine whose speed drifts slows all of them alike; the ratio of each round is taken and the
median over rounds reported.

    python -m benchmarks.steps DATASET CONFIGURATION [-p PLANS] [-labelled N] [--rounds 15] [--steps 4] [-device cpu]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.data.raw import dataset_name
from nnssl.files import environment_folder, read_json
from nnssl.registry import METHODS
from nnssl.run_settings import RunSettings

Step = Callable[[], object]


def seconds(
    steps: dict[str, Step], rounds: int, repeats: int, synchronise: Callable[[], None]
) -> dict[str, list[float]]:
    """Return each step's seconds in every round; the steps take turns within a round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 1):  # the first one warms up
        for name, step in steps.items():
            synchronise()
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            synchronise()
            if round_number:
                times[name].append((time.perf_counter() - start) / repeats)
    return times


def trainers_and_batches(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return initialised trainers of equal plans, and batches that all of them can use."""
    root = environment_folder("nnUNet_preprocessed")
    folder = root / dataset_name(arguments.dataset, root)
    run = RunSettings(num_iterations=100_000, labelled=arguments.labelled).to_dict()
    made = {}
    for name, cls in {"nnUNetTrainer": nnUNetTrainer, **{name: m.load() for name, m in METHODS.items()}}.items():
        plans = read_json(folder / f"{arguments.p}.json")
        plans["nnssl_semi"] = {**plans.get("nnssl_semi", {}), "run": run}
        plans["continue_training"] = False
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = cls(
                plans, arguments.configuration, 0, read_json(folder / "dataset.json"), torch.device(arguments.device)
            )
            trainer.initialize()
        trainer.network.train()
        made[name] = trainer
    stream, _ = made["MeanTeacherTrainer"].get_dataloaders()
    return made, [next(stream) for _ in range(4)]


def parts(trainers: dict[str, Any], batches: list[dict[str, Any]]) -> dict[str, Step]:
    """Return the steps to time."""
    device = trainers["nnUNetTrainer"].device
    turn = iter(range(10**9))

    def batch() -> dict[str, Any]:
        return batches[next(turn) % len(batches)]

    doubled = [
        {
            "data": torch.cat([b["labelled"]["data"], b["unlabelled"]["data"].chunk(2, 1)[1]]),
            "target": [torch.cat([t, t]) for t in b["labelled"]["target"]],
        }
        for b in batches
    ]
    teacher = trainers["MeanTeacherTrainer"].teacher

    def teacher_forward() -> None:
        image = batch()["unlabelled"]["data"].chunk(2, 1)[0].to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=device.type == "cuda"):
            teacher(image)

    return {
        "stock": lambda: trainers["nnUNetTrainer"].train_step(batch()["labelled"]),
        "supervised": lambda: trainers["SupervisedTrainer"].train_step(batch()),
        "stock, labelled + unlabelled": lambda: trainers["nnUNetTrainer"].train_step(doubled[next(turn) % 4]),
        "teacher forward": teacher_forward,
        "mean teacher": lambda: trainers["MeanTeacherTrainer"].train_step(batch()),
    }


def main() -> None:
    """Print the table of step times and the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("-p", default="nnUNetPlans", help="plans name, with its tag")
    parser.add_argument("-labelled", default=None)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    os.environ["nnUNet_n_proc_DA"] = "0"
    synchronise = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["nnUNet_results"] = str(Path(scratch))
        times = seconds(parts(*trainers_and_batches(arguments)), arguments.rounds, arguments.steps, synchronise)
    for name, values in times.items():
        print(f"{name:<30} {1000 * statistics.median(values):8.1f} ms")
    supervised = [a / b for a, b in zip(times["supervised"], times["stock"], strict=True)]
    sums = zip(times["stock, labelled + unlabelled"], times["teacher forward"], strict=True)
    mean_teacher = [a / sum(b) for a, b in zip(times["mean teacher"], sums, strict=True)]
    for name, ratios in (("SupervisedTrainer / stock", supervised), ("MeanTeacherTrainer / its parts", mean_teacher)):
        print(f"{name:<30} {statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
