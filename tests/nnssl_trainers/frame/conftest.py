"""A short run of a method with all that a checkpoint can hold, and its weights without interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnssl.training import checkpoints

METHOD = "DSMTTrainer"  # it has a teacher, two students, two optimisers and two phases
RUN = {"num_iterations": 9, "seed": 5}


def weights(folder: Path, file: str = "checkpoint_final.pth") -> dict[str, torch.Tensor]:
    return checkpoints.load(folder / file)["network_weights"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def uninterrupted(make_trainer) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Return the final weights and the log of the run `RUN`; the folder of the run is empty afterwards."""
    trainer = make_trainer(METHOD, **RUN)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    result = weights(folder), json.loads("[" + ",".join((folder / "progress.jsonl").read_text().splitlines()) + "]")
    for file in folder.iterdir():
        file.unlink()
    return result
