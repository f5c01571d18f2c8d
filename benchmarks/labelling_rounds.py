"""Rounds of labelling with hidden labels: Dice on test scans after each round, for each strategy of `nnssl_suggest`.

    python -m benchmarks.labelling_rounds [-rounds 2] [-n 2] [-start 3] [-seeds 2] [-iterations 200]

A phantom with all labels is the annotator: every suggested mask is replaced by the true one. All strategies begin with
the same scans, model and seeds. Printed are the mean Dice over structures of the test scans, and Spearman's correlation
between their score by `nnssl_pseudo_quality` (mirrored copies) and their Dice.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path

import nnssl
from nnssl.annotation.agreement import rank_correlation
from nnssl.annotation.strategies import STRATEGIES
from nnssl.data.phantom import write_phantom

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
ID, TEST, SHAPE = 901, 12, (16, 40, 40)


def use(root: Path) -> None:
    """Point nnU-Net's variables to folders below `root`."""
    for variable in VARIABLES:
        (root / variable).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(root / variable)


def make_world(root: Path, start: int, pool: int, seed: int) -> tuple[Path, Path]:
    """Write a phantom whose labels but the first are hidden; return its folder and that of all labels."""
    use(root)
    raw = write_phantom(root / "nnUNet_raw", ID, labelled=start + pool, unlabelled=0, test=TEST, shape=SHAPE, seed=seed)
    truth = root / "truth"
    shutil.copytree(raw / "labelsTr", truth)
    (raw / "imagesUn").mkdir()
    for file in sorted((raw / "labelsTr").iterdir())[start:]:
        case = file.name.removesuffix(".nii.gz")
        file.unlink()
        (raw / "imagesTr" / f"{case}_0000.nii.gz").rename(raw / "imagesUn" / f"{case}_0000.nii.gz")
    content = json.loads((raw / "dataset.json").read_text()) | {"numTraining": start}
    (raw / "dataset.json").write_text(json.dumps(content))
    return raw, truth


def train(iterations: int, seed: int, tag: str) -> Path:
    """Plan, train on fold 0 and return the model's fold."""
    nnssl.plan(ID, ("2d",), hardware="cpu", num_processes=1)
    settings = {"optimizer": "adamw", "learning_rate": 0.002}
    return nnssl.train(
        ID, "2d", 0, trainer="SupervisedTrainer", num_iterations=iterations, seed=seed, tag=tag, settings=settings,
        device="cpu", run_validation=False,
    ).folder  # fmt: skip


def score(raw: Path, model: Path, output: Path) -> tuple[float, float | None]:
    """Return the mean Dice of the test scans, and the rank correlation of their score and Dice."""
    nnssl.predict(raw / "imagesTs", output / "masks", model=model.parent, folds=[0], device="cpu")
    summary = nnssl.evaluate(raw / "labelsTs", output / "masks", num_processes=1).summary
    dice = {
        Path(entry["prediction_file"]).name.removesuffix(".nii.gz"): statistics.fmean(
            values["Dice"] for values in entry["metrics"].values()
        )
        for entry in summary["metric_per_case"]
    }
    options = {"device": "cpu", "calibration": False}
    result = nnssl.pseudo_quality([model], raw / "imagesTs", output / "quality", **options)
    with result.scores.open(newline="") as file:
        scores = {row["case"]: float(row["score"] or 0) for row in csv.DictReader(file)}
    return statistics.fmean(dice.values()), rank_correlation(*zip(*((scores[c], dice[c]) for c in dice), strict=True))


def copy_world(source: Path, target: Path) -> Path:
    """Copy a world and use the copy; return the raw folder in it."""
    shutil.copytree(source, target)
    use(target)
    return next((target / "nnUNet_raw").iterdir())


def main() -> None:
    """Run all strategies and print one line a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 2), ("n", 2), ("start", 3), ("pool", 20), ("seeds", 2), ("iterations", 200)):
        parser.add_argument(f"-{name}", type=int, default=default)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for seed in range(a.seeds):
            first = Path(name) / f"seed{seed}"
            raw, truth = make_world(first, a.start, a.pool, seed)
            begun = train(a.iterations, seed, "round0")
            dice, correlation = score(raw, begun, first / "score")
            print(f"seed {seed} start: {a.start} labels, Dice {dice:.3f}, correlation {correlation}", flush=True)
            for strategy in STRATEGIES:
                world = first.with_name(f"{first.name}_{strategy}")
                raw = copy_world(first, world)
                model = world / begun.relative_to(first)
                for number in range(1, a.rounds + 1):
                    options = {"count": a.n, "strategy": strategy, "seed": seed, "device": "cpu"}
                    asked = nnssl.suggest(ID, world / f"ask{number}", models=[model], **options)
                    for case in asked.cases:
                        shutil.copy(truth / f"{case}.nii.gz", asked.folder)
                    labels = nnssl.accept(asked.folder, unchanged=True).labelled
                    model = train(a.iterations, seed, f"round{number}")
                    dice, correlation = score(raw, model, world / f"score{number}")
                    line = f"{labels} labels, Dice {dice:.3f}, correlation {correlation}"
                    print(f"seed {seed} {strategy} round {number}: {line}", flush=True)


if __name__ == "__main__":
    main()
