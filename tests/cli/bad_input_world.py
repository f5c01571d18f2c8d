"""A small world to break: a raw data set, its preprocessed cases, a trained model, scans to predict, masks to score."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from nnssl.names import FACTS_FILE

DATASET = "Dataset906_Bad"
MODEL = "SupervisedTrainer__nnUNetPlans__3d_fullres"
LABELS = {"background": 0, "core": 1, "rim": 2, "tail": 3}
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
CHANNELS = 2
SETTINGS = {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
PLAN = "nnssl_plan_and_preprocess -d 906 -budget cpu -c 3d_fullres -np 1 -npfp 1"
RESUME = "nnssl_train 906 3d_fullres 0 -tr SupervisedTrainer -num_iterations 2 -device cpu -tag default"
TRAIN = f"{RESUME} --overwrite"
PREDICT = "nnssl_predict -i {root}/scans -o {root}/out -device cpu --disable_tta -npp 0 -nps 0"
EVALUATE = "nnssl_evaluate {root}/labels {root}/masks -np 1"
PHANTOM = "nnssl_phantom -d 907 -labelled 1 -unlabelled 1 -test 0 -shape 16 16 16"


@dataclass(frozen=True)
class World:
    """The folders below one root, and how to break them."""

    root: Path
    patch: pytest.MonkeyPatch

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / DATASET

    @property
    def cases(self) -> Path:
        return self.preprocessed / "nnUNetPlans_3d_fullres"

    @property
    def model(self) -> Path:
        return self.root / "nnUNet_results" / DATASET / MODEL

    @property
    def fold(self) -> Path:
        return self.model / "fold_0"

    @property
    def scans(self) -> Path:
        return self.root / "scans"

    @property
    def labels(self) -> Path:
        return self.root / "labels"

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    def use(self) -> None:
        """Point nnU-Net's variables, and temporary files, below this root."""
        import tempfile

        for name, value in ({name: str(self.root / name) for name in VARIABLES} | SETTINGS).items():
            self.patch.setenv(name, value)
        self.patch.setattr(tempfile, "tempdir", str(self.root / "tmp"))

    def argv(self, command: str) -> tuple[str, list[str]]:
        """Return the command's module and its arguments."""
        name, *arguments = command.format(root=self.root).split()
        return name.removeprefix("nnssl_"), arguments

    def run(self, command: str, *more: str) -> int:
        """Run a command in this process and return its exit code."""
        module, arguments = self.argv(command)
        try:
            return int(import_module(f"nnssl.cli.{module}").main([*arguments, *more]))
        except SystemExit as stop:
            return int(stop.code or 0)

    def files(self) -> dict[str, str]:
        """Return every folder and file below the root, with a hash of its content; kept facts may come and go."""
        found = {}
        for folder, _, names in os.walk(self.root):
            found[os.path.relpath(folder, self.root)] = "folder"
            for name in (each for each in names if not each.startswith(FACTS_FILE)):
                path = Path(folder, name)
                content = path.read_bytes() if path.is_file() else bytes(path.readlink())
                found[str(path.relative_to(self.root))] = hashlib.sha256(content).hexdigest()
        return found


def edit_image(path: Path, change: Callable[[np.ndarray], Any] | None = None, spacing: float = 1.0) -> None:
    """Write an image anew with other voxels (in place, or what `change` returns) or another spacing."""
    voxels = np.asarray(nibabel.load(path).dataobj).copy()
    changed = change(voxels) if change else None
    write_image(path, voxels if changed is None else changed, spacing)


def write_image(path: Path, voxels: np.ndarray, spacing: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([spacing, 1.0, 1.0, 1.0])), path)


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Write a JSON file anew, changed in place or to what `change` returns."""
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


def cut(path: Path, share: float = 0.5) -> None:
    """Keep the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def make_raw(folder: Path) -> None:
    """Write four labelled, two unlabelled and one test scan of two channels and 16 x 16 x 16 voxels."""
    scans = {f"case_{i}": "imagesTr" for i in range(4)} | {f"un_{i}": "imagesUn" for i in range(2)}
    for number, (name, images) in enumerate({**scans, "test_0": "imagesTs"}.items()):
        rng = np.random.default_rng(number)
        grid = np.indices((16, 16, 16)) - rng.uniform(6, 9, 3).reshape(3, 1, 1, 1)
        distance = np.sqrt((grid**2).sum(axis=0))
        label = np.select([distance < 2.5, distance < 4, (distance < 7) & (grid[0] > 0)], [1, 2, 3]).astype(np.uint8)
        for channel in range(CHANNELS):
            image = np.array([0, 90, 50, 30])[label] + rng.normal(0, 4, label.shape)
            write_image(folder / images / f"{name}_{channel:04d}.nii.gz", image.astype(np.float32))
        if images != "imagesUn":
            write_image(folder / images.replace("images", "labels") / f"{name}.nii.gz", label)
    dataset_json = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": LABELS,
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset_json))


@contextmanager
def few_samples_and_steps() -> Iterator[None]:
    """Draw fewer voxels for the intensity statistics, and validate for one step only."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    from nnssl_trainers.frame.trainer import SemiSupervisedTrainer

    with pytest.MonkeyPatch.context() as patch:
        for owner, method, name, value in (
            (DatasetFingerprintExtractor, "__init__", "num_foreground_voxels_for_intensitystats", 1e4),
            (SemiSupervisedTrainer, "initialize", "num_val_iterations_per_epoch", 1),
        ):
            original = getattr(owner, method)

            @functools.wraps(original)
            def then_set(self: Any, *args: Any, _of: Any = original, _set: Any = (name, value), **options: Any) -> None:
                _of(self, *args, **options)
                setattr(self, *_set)

            patch.setattr(owner, method, then_set)
        yield


def make_world(root: Path) -> None:
    """Make a raw data set, plan it, train a model for two iterations, and put scans and masks beside it."""
    for name in (*VARIABLES, "tmp"):
        (root / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        world = World(root, patch)
        world.use()
        make_raw(world.raw)
        for command in (PLAN, f"{TRAIN} --no_val"):
            assert world.run(command) == 0
        shutil.copytree(world.raw / "imagesTs", world.scans)
        shutil.copytree(world.raw / "labelsTs", world.labels)
        shutil.copytree(world.raw / "labelsTs", world.masks)
        shutil.copy(world.raw / "dataset.json", world.masks)
