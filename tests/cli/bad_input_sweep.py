"""Bad input to studies, trackers and launchers; the table of the other commands is `bad_input_cases`."""

from __future__ import annotations

import importlib.util

from tests.cli.bad_input_cases import BadInput, point, unset, write
from tests.cli.bad_input_world import TRAIN, World

SWEEP = "nnssl_sweep -d 906 -c 3d_fullres -tr SupervisedTrainer -num_iterations 2 -device cpu -o {root}/study"
FILE = "nnssl_sweep {root}/study.toml -o {root}/study"


def without_packages(world: World) -> None:
    """Let the optional packages be missing."""
    found = importlib.util.find_spec
    gone = ("ray", "mlflow", "tensorboard", "wandb")
    world.patch.setattr("importlib.util.find_spec", lambda name, *rest: None if name in gone else found(name, *rest))


def launched(**variables: str) -> object:
    """Return a change that sets the variables of a launcher."""

    def change(world: World) -> None:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            world.patch.delenv(name, raising=False)
        for name, value in variables.items():
            world.patch.setenv(name, value)

    return change


SWEEP_CASES = [
    BadInput("sweep: no folder", SWEEP.partition(" -o")[0], 2, ("-o",)),
    BadInput("sweep: no study in the folder", "nnssl_sweep -o {root}/study", 2, ("no study", "nnssl_sweep -d")),
    BadInput("sweep: status without a study", "nnssl_sweep -o {root}/study --status", 2, ("no study",)),
    BadInput("sweep: no trainers", "nnssl_sweep -d 906 -c 3d_fullres -o {root}/study", 2, ("-tr",)),
    BadInput("sweep: unknown trainer", SWEEP.replace("SupervisedTrainer", "SupervisdTrainer"), 2,
             ("SupervisdTrainer", "SupervisedTrainer")),
    BadInput("sweep: unknown data set", SWEEP.replace("906", "908"), 2, ("908",)),
    BadInput("sweep: label budget of none", f"{SWEEP} -labelled 0", 2, ("-labelled 0",)),
    BadInput("sweep: unknown setting", f"{SWEEP} --set heaviness=1", 2, ("heaviness",)),
    BadInput("sweep: settings of no trainer", f"{SWEEP} --variant unlabelled_weight=1", 2,
             ("no trainer of the study", "--variant unlabelled_weight=1")),
    BadInput("sweep: no slots", f"{SWEEP} -slots 0", 2, ("-slots 0",)),
    BadInput("sweep: no study file", FILE, 3, ("{root}/study.toml",)),
    BadInput("sweep: study file that is not TOML", FILE, 3, ("{root}/study.toml", "TOML"),
             write("study.toml", "dataset = [")),
    BadInput("sweep: unknown key of the study file", FILE, 2, ("trainer", "trainers"),
             write("study.toml", 'trainer = ["SupervisedTrainer"]')),
    BadInput("sweep: seeds that are words", FILE, 3, ("'seeds'",), write("study.toml", 'seeds = ["a"]')),
    BadInput("sweep: folder below a file", SWEEP.replace("/study", "/file/study"), 4, ("{root}/file",),
             write("file", "")),
    BadInput("sweep: nnUNet_preprocessed unset", SWEEP, 4, ("export nnUNet_preprocessed=",),
             unset("nnUNet_preprocessed")),
    BadInput("sweep: nnUNet_results a file", SWEEP, 4, ("{root}/file",), point("nnUNet_results", "file")),
    BadInput("sweep: unknown engine", f"{SWEEP} -engine slurm", 2, ("slurm", "ray")),
    BadInput("sweep: address without Ray", f"{SWEEP} -address auto", 2, ("-address auto", "-engine ray")),
    BadInput("sweep: Ray is not installed", f"{SWEEP} -engine ray", 4, ("nnssl-semi[ray]",), without_packages),
    BadInput("train: unknown tracker", f"{TRAIN} -track excel", 2, ("excel", "tensorboard")),
    BadInput("train: tracker that is not installed", f"{TRAIN} -track mlflow", 4, ("nnssl-semi[mlflow]",),
             without_packages),
    BadInput("train: launcher without an address", TRAIN, 4, ("MASTER_ADDR, MASTER_PORT", "torchrun"),
             launched(RANK="0", WORLD_SIZE="2")),
    BadInput("train: impossible rank", TRAIN, 4, ("RANK=2", "torchrun"),
             launched(RANK="2", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="29500")),
]  # fmt: skip
