"""Step times as ratios: SupervisedTrainer against stock nnU-Net, the other methods against the sum of their parts.

A step runs from batch ready to optimiser step. The loaders are idle: all batches are drawn before. The trainers take
turns in blocks, so that a machine whose speed drifts slows all of them alike; the ratio of each round is taken and the
median over rounds reported.

    python -m benchmarks.steps DATASET CONFIGURATION [-p PLANS] [-labelled N] [--rounds 15] [--steps 4] [-device cpu]
                               [--set mamba_width=24 mamba_states=4]

`--set` is for DSMTTrainer, whose step is one of self-training. Its parts: a stock step, a step of student 2 alone on as
many patches, and a forward pass of the teacher. With `-device cuda` the peak memory of each step is printed as well.
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

from nnssl.config import config_with
from nnssl.data.raw import dataset_name
from nnssl.files import environment_folder, read_json
from nnssl.registry import METHODS
from nnssl.run_settings import RunSettings

Step = Callable[[], object]
RATIOS = {
    "SupervisedTrainer / stock": ("supervised", ["stock"]),
    "MeanTeacherTrainer / its parts": ("mean teacher", ["stock, labelled + unlabelled", "teacher forward"]),
    "DSMTTrainer / its parts": ("dsmt", ["stock", "student 2", "teacher forward"]),
}


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
    made = {}
    for name, cls in {"nnUNetTrainer": nnUNetTrainer, **{name: m.load() for name, m in METHODS.items()}}.items():
        plans = read_json(folder / f"{arguments.p}.json")
        config = config_with(cls.config_class, arguments.set).to_dict() if name == "DSMTTrainer" else {}
        run = RunSettings(num_iterations=100_000, labelled=arguments.labelled, config=config)
        plans["nnssl_semi"] = {**plans.get("nnssl_semi", {}), "run": run.to_dict()}
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
    dsmt = trainers["DSMTTrainer"]
    dsmt.training_mode()
    dsmt.iteration = dsmt.settings.num_iterations // 2
    autocast = torch.autocast(device.type, enabled=device.type == "cuda")

    def teacher_forward() -> None:
        image = batch()["unlabelled"]["data"].chunk(2, 1)[0].to(device)
        with torch.no_grad(), autocast:
            trainers["MeanTeacherTrainer"].teacher(image)

    def student2() -> None:
        ready = dsmt._on_device(batch())
        dsmt.optimizer2.zero_grad(set_to_none=True)
        with autocast:
            logits = dsmt.network2(ready.image_l)
            loss = dsmt.loss.loss(logits, ready.target_l[0])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dsmt.network2.parameters(), 12)
        dsmt.optimizer2.step()

    return {
        "stock": lambda: trainers["nnUNetTrainer"].train_step(batch()["labelled"]),
        "supervised": lambda: trainers["SupervisedTrainer"].train_step(batch()),
        "stock, labelled + unlabelled": lambda: trainers["nnUNetTrainer"].train_step(doubled[next(turn) % 4]),
        "teacher forward": teacher_forward,
        "mean teacher": lambda: trainers["MeanTeacherTrainer"].train_step(batch()),
        "student 2": student2,
        "dsmt": lambda: dsmt.train_step(batch()),
    }


def main() -> None:
    """Print the table of step times and the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("-p", default="nnUNetPlans", help="plans name, with its tag")
    parser.add_argument("-labelled", default=None)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    os.environ["nnUNet_n_proc_DA"] = "0"
    synchronise = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["nnUNet_results"] = str(Path(scratch))
        steps = parts(*trainers_and_batches(arguments))
        times = seconds(steps, arguments.rounds, arguments.steps, synchronise)
        peaks = {name: peak_memory(step) for name, step in steps.items()} if arguments.device == "cuda" else {}
    for name, values in times.items():
        peak = f"  {peaks[name] / 1e9:6.2f} GB" if peaks else ""
        print(f"{name:<30} {1000 * statistics.median(values):8.1f} ms{peak}")
    for name, (whole, of) in RATIOS.items():
        ratios = [a / sum(b) for a, *b in zip(times[whole], *(times[part] for part in of), strict=True)]
        print(f"{name:<30} {statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")


def peak_memory(step: Step) -> int:
    """Return the largest device memory in bytes during a step, with all that the trainers hold."""
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
