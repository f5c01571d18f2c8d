"""Step times as ratios: SupervisedTrainer against stock nnU-Net, the other methods against the sum of their parts.

A step runs from batch ready to optimiser step. The loaders are idle: all batches are drawn before. The steps take turns
in blocks, so that a machine whose speed drifts slows all of them alike; the ratio of each round is taken and the median
over rounds reported.

    python -m benchmarks.steps DATASET CONFIGURATION [-p PLANS] [-labelled N] [-tr TRAINER ...] [--set NAME=VALUE ...]
                               [--rounds 15] [--steps 4] [-device cpu] [--bf16]

Parts are steps of stock nnU-Net or of one network alone, on as many patches as the method sends through it, and forward
passes of the teacher. `--set` is for one trainer. Steps are those of the middle of a run. With `-device cuda` the peak
memory of each step is printed as well.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.config import config_with
from nnssl.data.raw import dataset_name
from nnssl.networks.denoising import decode
from nnssl.registry import find_method
from nnssl.system.files import environment_folder, read_json
from nnssl.training.settings import RunSettings
from nnssl_trainers.frame.batch import as_list
from nnssl_trainers.frame.stages import StagedTrainer

Step = Callable[[], object]
PARTS = {
    "SupervisedTrainer": ["stock"],
    "MeanTeacherTrainer": ["stock, 2 x patches", "teacher forward"],
    "DSMTTrainer": ["stock", "DSMTTrainer student 2", "teacher forward"],
    "PLGDFTrainer": ["stock, 4 x patches", "teacher forward", "teacher forward"],
    "DPTMTrainer": ["stock, 2 x patches", "encoder, 2 x patches", "teacher forward"],
    "CCETrainer": ["CCETrainer student 1, 2 x patches", "CCETrainer student 2, 2 x patches"],
    "DTLPTrainer": ["stock, 5 x patches", "ξ", "ψ decoder", "ξ and ψ label", "teacher forward", "teacher forward"],
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
    """Return initialised trainers of equal plans, stock nnU-Net's first, and batches that all of them can use."""
    root = environment_folder("nnUNet_preprocessed")
    folder = root / dataset_name(arguments.dataset, root)
    made = {}
    names = dict.fromkeys([*arguments.tr, "DPTMTrainer"])  # its batches have everything that a method may need
    for name, cls in {"nnUNetTrainer": nnUNetTrainer, **{name: find_method(name).load() for name in names}}.items():
        plans = read_json(folder / f"{arguments.p}.json")
        config = config_with(cls.config_class, arguments.set).changes() if [name] == arguments.tr else {}
        if issubclass(cls, StagedTrainer):  # the unlabelled patches count from the start
            config = {"supervised_share": 0.0, "ready_dice": 0.0, **config}
        run = RunSettings(num_iterations=100_000, labelled=arguments.labelled, config=config, bf16=arguments.bf16)
        plans["nnssl_semi"] = {**plans.get("nnssl_semi", {}), "run": run.to_dict()}
        plans["continue_training"] = False
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = cls(
                plans, arguments.configuration, 0, read_json(folder / "dataset.json"), torch.device(arguments.device)
            )
            trainer.initialize()
        trainer.network.train()
        made[name] = trainer
    stream, _ = made["DPTMTrainer"].get_dataloaders()
    batches = [next(stream) for _ in range(4)]
    for trainer in list(made.values())[1:]:
        trainer.set_training_mode()
        trainer.iteration = trainer.settings.num_iterations // 2
    return made, batches


def steps_to_time(trainers: dict[str, Any], batches: list[dict[str, Any]], bf16: bool) -> dict[str, Step]:
    """Return the steps of the trainers and of their parts, by the names in `PARTS`."""
    stock, turn = trainers["nnUNetTrainer"], itertools.count()
    device = stock.device
    ours = trainers["DPTMTrainer"]

    def batch(patches: int = 1) -> dict[str, Any]:
        labelled = batches[next(turn) % len(batches)]["labelled"]
        target = [part.repeat(patches, *[1] * (part.ndim - 1)) for part in labelled["target"]]
        return {"data": labelled["data"].repeat(patches, *[1] * (target[0].ndim - 1)), "target": target}

    def stock_step(patches: int) -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 and device.type == "cpu" else contextlib.nullcontext():
            stock.train_step(batch(patches))

    def step_of(network: Any, optimizer: Any, patches: int) -> None:  # noqa: ANN401
        made = batch(patches)
        optimizer.zero_grad(set_to_none=True)
        with ours.precision():
            logits = as_list(network(made["data"].to(device)))[0]
            loss = stock.loss.loss(logits.float(), made["target"][0].to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()

    def encoder_step(patches: int) -> None:
        with ours.precision():
            deepest = ours.encoder(batch(patches)["data"].to(device))[-1]
        deepest.float().square().mean().backward()

    def teacher_forward() -> None:
        with torch.no_grad(), ours.precision():
            ours.teacher(batch()["data"].to(device))

    made: dict[str, Step] = {
        "stock": partial(stock_step, 1),
        "stock, 2 x patches": partial(stock_step, 2),
        "stock, 4 x patches": partial(stock_step, 4),
        "stock, 5 x patches": partial(stock_step, 5),
        "teacher forward": teacher_forward,
        "encoder, 2 x patches": partial(encoder_step, 2),
    }
    made |= parts_of_dtlp(trainers.get("DTLPTrainer"), batch)
    for name, trainer in trainers.items():
        if trainer is stock:
            continue
        made[name] = lambda trainer=trainer: trainer.train_step(batches[next(turn) % len(batches)])
        for number, (network, optimizer) in enumerate(trainer.trained, start=1):
            for patches, text in ((1, ""), (2, ", 2 x patches")):
                made[f"{name} student {number}{text}"] = partial(step_of, network, optimizer, patches)
    return made


def parts_of_dtlp(trainer: Any, batch: Callable[[], dict[str, Any]]) -> dict[str, Step]:  # noqa: ANN401
    """Return the passes that DTLP-Net has beside those of its deployed network and of the moving average."""
    if trainer is None:
        return {}
    network, branches, device = trainer.network, trainer.branches, trainer.device

    def loss_of(outputs: list[torch.Tensor], made: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = trainer.loss([z.float() for z in outputs], [y.to(device) for y in made["target"]])
        return loss

    def denoise() -> None:
        made = batch()
        image = made["data"].to(device)
        maps = torch.ones(len(image), branches.heads, *image.shape[2:], device=device)
        with trainer.precision():
            loss = loss_of(branches.denoise(network, image, maps)[0], made)
        loss.backward()

    made = batch()
    with torch.no_grad():
        features = [x.detach().requires_grad_() for x in network.encoder(made["data"].to(device))]

    def decode_labels() -> None:
        with trainer.precision():
            loss = loss_of(decode(branches.psi, features, made["data"].shape[2:]), made)
        loss.backward()

    def teach() -> None:
        with trainer.precision():
            branches.teach(network, batch()["data"].to(device))

    return {"ξ": denoise, "ψ decoder": decode_labels, "ξ and ψ label": teach}


def main() -> None:
    """Print the table of step times and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("-p", default="nnUNetPlans", help="plans name, with its tag")
    parser.add_argument("-labelled", default=None)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("-tr", nargs="+", default=list(PARTS), metavar="TRAINER")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    os.environ["nnUNet_n_proc_DA"] = "0"
    synchronise = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["nnUNet_results"] = str(Path(scratch))
        found = steps_to_time(*trainers_and_batches(arguments), arguments.bf16)
        steps = {name: found[name] for trainer in arguments.tr for name in (trainer, *PARTS[trainer])}
        times = seconds(steps, arguments.rounds, arguments.steps, synchronise)
        peaks = {name: peak_memory(step) for name, step in steps.items()} if arguments.device == "cuda" else {}
    for name, values in times.items():
        peak = f"  {peaks[name] / 1e9:6.2f} GB" if peaks else ""
        print(f"{name:<34} {1000 * statistics.median(values):8.1f} ms{peak}")
    for name in arguments.tr:
        ratios = [a / sum(b) for a, *b in zip(times[name], *(times[part] for part in PARTS[name]), strict=True)]
        print(f"{name} / its parts: {statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")


def peak_memory(step: Step) -> int:
    """Return the largest device memory in bytes during a step, with all that the trainers hold."""
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
