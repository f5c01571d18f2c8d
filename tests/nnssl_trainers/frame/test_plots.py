from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnssl_trainers.frame.plots import plot_progress


def row(iteration: int, **more: float) -> dict[str, float]:
    usual = {
        "loss": 1.0,
        "validation_loss": 1.1,
        "pseudo_dice": 0.5,
        "learning_rate": 0.01,
        "seconds_per_iteration": 0.2,
    }
    return {"iteration": iteration, **usual, **more}


def coloured_pixels(file: Path) -> int:
    from matplotlib.image import imread

    picture = imread(file)[..., :3]
    return int((np.ptp(picture, axis=-1) > 0.2).sum())


@pytest.mark.parametrize("epochs", [1, 3])
def test_one_epoch_is_drawn_and_every_term_and_structure_has_a_curve(epochs: int, tmp_path: Path) -> None:
    rows = [row(250 * (i + 1)) for i in range(epochs)]
    more = [
        {**each, "loss_supervised": 0.7, "loss_cps_1": 0.3, "pseudo_dice_1": 0.6, "pseudo_dice_2": 0.4} for each in rows
    ]
    plot_progress(rows, [], tmp_path / "few.png")
    plot_progress(more, ["core", "rim"], tmp_path / "more.png")
    few, many = coloured_pixels(tmp_path / "few.png"), coloured_pixels(tmp_path / "more.png")
    assert 0 < few < many
    assert not list(tmp_path.glob("*.tmp"))


def test_numbers_that_are_missing_leave_gaps(tmp_path: Path) -> None:
    rows = [row(250, pseudo_dice_1=float("nan"), loss=float("inf")), row(500, pseudo_dice_1=0.5)]
    plot_progress(rows, ["core"], tmp_path / "progress.png")
    assert (tmp_path / "progress.png").stat().st_size > 10_000


def test_a_run_leaves_the_picture(make_trainer) -> None:
    trainer = make_trainer("MeanTeacherTrainer", 2, epoch=1, num_iterations=1)
    trainer.run_training()
    assert coloured_pixels(Path(trainer.output_folder) / "progress.png") > 0
