"""Stock nnU-Net in a process of its own, whose forked workers start fast and inherit no thread of another test."""

from __future__ import annotations

import functools
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def few_intensity_samples() -> Iterator[None]:
    """Stock nnU-Net and we draw 10^8 voxels for the intensity statistics; 10^4 show the same."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    original = DatasetFingerprintExtractor.__init__

    @functools.wraps(original)
    def few(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e4

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatasetFingerprintExtractor, "__init__", few)
        yield


def run_stock(job: str, **environment: str) -> None:
    """Run one of the jobs of this module, with `environment` beside that of this process."""
    command = [sys.executable, "-m", __name__, job]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command,
        cwd=root,
        env=os.environ | {"nnUNet_n_proc_DA": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _plan_and_preprocess() -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    extract_fingerprint_dataset(906, num_processes=2, show_progress_bar=False)
    plan_experiment_dataset(906)
    preprocess_dataset(906, configurations=("2d", "3d_fullres"), num_processes=(2, 2), show_progress_bar=False)


def _repeat() -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    plan_experiment_dataset(906, overwrite_plans_name="Other")
    DefaultPreprocessor(verbose=False).run(906, "3d_fullres", "nnUNetPlans", 1)


JOBS: dict[str, Callable[[], None]] = {"plan_and_preprocess": _plan_and_preprocess, "repeat": _repeat}

if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment, misc]
    with few_intensity_samples():
        JOBS[sys.argv[1]]()
