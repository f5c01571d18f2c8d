r"""Rounds of labelling with hidden labels: Dice on test scans after each round, for each strategy of `nnssl_suggest`.

    python -m benchmarks.labelling_rounds [-rounds 2] [-n 2] [-start 3] [-pool 20] [-seeds 0 1] [-iterations 200]
    python -m benchmarks.labelling_rounds -source DATA/hippocampus -rounds 3 -n 5 -start 5 -pool 60 -seeds 0 1 2 \
        -small 3d_fullres small 24 32 24 --spacing 1.5 1.5 1.5 --features 8

A phantom with all labels is the annotator, or with `-source` a data set in nnU-Net's raw format with `splits.json`
(`train_order` and `val`, cases): every suggested mask is replaced by the true one. A seed chooses the phantom, or of
`train_order` the scans to begin with and the pool, and it is the seed of training and suggestion. The test scans of a
real data set are `val`. All strategies begin with the same scans and model, and train on all labelled scans (fold
`all`). `-small`, which comes last, has the arguments of `benchmarks.small_plan` after the data set. Printed is the mean
Dice over structures of the test scans, and with `--quality` Spearman's correlation between their score by
`nnssl_pseudo_quality` (mirrored copies) and their Dice. Nothing is averaged over mirrored copies, to save time.
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

import numpy as np

import nnssl
from benchmarks import small_plan
from nnssl.annotation.agreement import rank_correlation
from nnssl.annotation.strategies import STRATEGIES
from nnssl.data.phantom import write_phantom

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
ID, SHAPE = 901, (16, 40, 40)


def use(root: Path) -> None:
    """Point nnU-Net's variables to folders below `root`."""
    for variable in VARIABLES:
        (root / variable).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(root / variable)


def make_world(root: Path, a: argparse.Namespace, seed: int) -> tuple[Path, Path]:
    """Write a data set whose labels but the first are hidden; return its folder and that of all labels."""
    use(root)
    size = a.start + a.pool
    if a.source:
        raw = copy_of(a.source, root / "nnUNet_raw", size, a.test, seed)
        names = chosen(a.source, size, seed)
    else:
        raw = write_phantom(root / "nnUNet_raw", ID, labelled=size, unlabelled=0, test=a.test, shape=SHAPE, seed=seed)
        names = sorted(file.name.removesuffix(".nii.gz") for file in (raw / "labelsTr").iterdir())
    truth = root / "truth"
    shutil.copytree(raw / "labelsTr", truth)
    (raw / "imagesUn").mkdir()
    for case in names[a.start :]:
        (raw / "labelsTr" / f"{case}.nii.gz").unlink()
        (raw / "imagesTr" / f"{case}_0000.nii.gz").rename(raw / "imagesUn" / f"{case}_0000.nii.gz")
    content = json.loads((raw / "dataset.json").read_text()) | {"numTraining": a.start}
    (raw / "dataset.json").write_text(json.dumps(content))
    return raw, truth


def chosen(source: Path, size: int, seed: int) -> list[str]:
    """Return the training cases of a world, in a random order of this seed."""
    order = json.loads((source / "splits.json").read_text())["train_order"]
    return [str(order[k]) for k in np.random.default_rng(seed).permutation(len(order))[:size]]


def copy_of(source: Path, folder: Path, size: int, test: int, seed: int) -> Path:
    """Copy the chosen cases of a real data set, and its first validation cases as test cases; return the raw folder."""
    raw = folder / f"Dataset{ID}_Rounds"
    parts = {"Tr": chosen(source, size, seed), "Ts": json.loads((source / "splits.json").read_text())["val"][:test]}
    for part, cases in parts.items():
        for kind, ending in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
            (raw / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
            for case in cases:
                shutil.copy(source / f"{kind}Tr" / f"{case}{ending}", raw / f"{kind}{part}" / f"{case}{ending}")
    shutil.copy(source / "dataset.json", raw)
    return raw


def train(a: argparse.Namespace, seed: int, tag: str) -> Path:
    """Plan, train on all labelled scans, and return the model's fold."""
    configuration = "2d"
    if a.small:
        base, configuration = a.small[:2]
        plans = nnssl.plan(ID, (base,), hardware="cpu", num_processes=1, run_preprocessing=False).plans_path
        if configuration not in json.loads(plans.read_text())["configurations"]:
            small_plan.main([str(ID), *a.small])
    nnssl.plan(ID, (configuration,), hardware="cpu", num_processes=1)
    settings = {"optimizer": "adamw", "learning_rate": 0.002}
    return nnssl.train(
        ID, configuration, "all", trainer="SupervisedTrainer", num_iterations=a.iterations, seed=seed, tag=tag,
        settings=settings, device="cpu", run_validation=False,
    ).folder  # fmt: skip


def score(raw: Path, model: Path, output: Path, quality: bool) -> tuple[float, float | None]:
    """Return the mean Dice of the test scans, and with `quality` the rank correlation of their score and Dice."""
    options = {"folds": ["all"], "device": "cpu", "mirroring": False}
    nnssl.predict(raw / "imagesTs", output / "masks", model=model.parent, **options)
    summary = nnssl.evaluate(raw / "labelsTs", output / "masks", num_processes=1).summary
    dice = {
        Path(entry["prediction_file"]).name.removesuffix(".nii.gz"): statistics.fmean(
            values["Dice"] for values in entry["metrics"].values()
        )
        for entry in summary["metric_per_case"]
    }
    if not quality:
        return statistics.fmean(dice.values()), None
    result = nnssl.pseudo_quality([model], raw / "imagesTs", output / "quality", device="cpu", calibration=False)
    with result.scores.open(newline="") as file:
        scores = {row["case"]: float(row["score"] or 0) for row in csv.DictReader(file)}
    return statistics.fmean(dice.values()), rank_correlation(*zip(*((scores[c], dice[c]) for c in dice), strict=True))


def copy_world(source: Path, target: Path) -> Path:
    """Copy a world and use the copy; return the raw folder in it."""
    shutil.copytree(source, target)
    use(target)
    return next((target / "nnUNet_raw").iterdir())


def tell(seed: int, strategy: str, number: int, labels: int, scored: tuple[float, float | None]) -> None:
    """Print one measured model."""
    dice, correlation = scored
    text = "" if correlation is None else f", correlation {correlation:.2f}"
    print(f"seed {seed} {strategy} round {number}: {labels} labels, Dice {dice:.3f}{text}", flush=True)


def run(root: Path, a: argparse.Namespace, seed: int) -> None:
    """Run all strategies from one beginning."""
    first = root / f"seed{seed}"
    raw, truth = make_world(first, a, seed)
    begun = train(a, seed, "round0")
    tell(seed, "start", 0, a.start, score(raw, begun, first / "score", a.quality))
    for strategy in STRATEGIES:
        world = first.with_name(f"{first.name}_{strategy}")
        raw = copy_world(first, world)
        model = world / begun.relative_to(first)
        for number in range(1, a.rounds + 1):
            options = {"count": a.n, "strategy": strategy, "seed": seed, "device": "cpu", "mirroring": False}
            asked = nnssl.suggest(ID, world / f"ask{number}", models=[model], **options)
            for case in asked.cases:
                shutil.copy(truth / f"{case}.nii.gz", asked.folder)
            labels = nnssl.accept(asked.folder, unchanged=True).labelled
            model = train(a, seed, f"round{number}")
            tell(seed, strategy, number, labels, score(raw, model, world / f"score{number}", a.quality))


def main() -> None:
    """Run all seeds and strategies and print one line a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 2), ("n", 2), ("start", 3), ("pool", 20), ("test", 12), ("iterations", 200)):
        parser.add_argument(f"-{name}", type=int, default=default)
    parser.add_argument("-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("-source", type=Path)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("-small", nargs=argparse.REMAINDER, default=[])
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for seed in a.seeds:
            run(Path(name), a, seed)


if __name__ == "__main__":
    main()
