"""Shared fixtures: a tiny preprocessed data set that needs no planning, in nnU-Net's formats."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("nnUNet_compile", "f")
os.environ.setdefault("nnUNet_n_proc_DA", "0")

DATASET = "Dataset905_Tiny"
LABELS = {"background": 0, "core": 1, "rim": 2}


def tiny_plans(dim: int, patch: list[int], batch_size: int = 2) -> dict[str, Any]:
    """Return nnU-Net plans with one small configuration, `3d_fullres` or `2d`."""
    name = "3d_fullres" if dim == 3 else "2d"
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": f"nnUNetPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": patch,
        "median_image_size_in_voxels": [24, 24, 24][:dim],
        "spacing": [1.0, 1.0, 1.0][:dim],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 8, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
                "kernel_sizes": [[3] * dim] * 3,
                "strides": [[1] * dim, [2] * dim, [2] * dim],
                "n_conv_per_stage": [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": dim == 2,
    }
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [24, 24, 24],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {name: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "max": 3.0,
                "mean": 1.0,
                "median": 1.0,
                "min": -3.0,
                "percentile_00_5": -2.0,
                "percentile_99_5": 3.0,
                "std": 1.0,
            }
        },
    }


def tiny_case(rng: np.random.Generator, shape: tuple[int, int, int] = (20, 24, 22)) -> tuple[np.ndarray, np.ndarray]:
    """Return image (1, *S) float32 and labels (1, *S) int16: a noisy ball with a rim at a random place."""
    centre = [rng.uniform(0.35, 0.65) * n for n in shape]
    grid = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
    labels = np.where(distance < 4, 1, np.where(distance < 7, 2, 0)).astype(np.int16)
    image = np.array([0.0, 2.0, 1.0])[labels] + rng.normal(0, 0.4, shape)
    return image[None].astype(np.float32), labels[None]


def _properties(image: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    places = {} if labels is None else {c: np.argwhere(labels == c) for c in (1, 2)}
    return {
        "sitk_stuff": {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "direction": tuple(np.eye(3).ravel())},
        "spacing": [1.0, 1.0, 1.0],
        "shape_before_cropping": image.shape[1:],
        "bbox_used_for_cropping": [[0, n] for n in image.shape[1:]],
        "shape_after_cropping_and_before_resampling": image.shape[1:],
        "class_locations": places,
    }


MakeTiny = Callable[..., Path]


@pytest.fixture
def make_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeTiny:
    """Return a function that writes a preprocessed data set (4 labelled, 2 validation, 4 unlabelled cases)."""

    def make(dim: int = 3, patch: list[int] | None = None, root: Path = tmp_path, **arch_kwargs: Any) -> Path:
        import SimpleITK as sitk
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (root / variable).mkdir(exist_ok=True)
            monkeypatch.setenv(variable, str(root / variable))
        folder = root / "nnUNet_preprocessed" / DATASET
        name = "3d_fullres" if dim == 3 else "2d"
        labelled, unlabelled, truth = (
            folder / f"nnUNetPlans_{name}",
            folder / f"nnUNetPlans_{name}_unlabelled",
            folder / "gt_segmentations",
        )
        for part in (labelled, unlabelled, truth):
            part.mkdir(parents=True)
        rng = np.random.default_rng(7)
        cases = [f"case_{i:02d}" for i in range(6)] + [f"un_{i:02d}" for i in range(4)]
        for case in cases:
            image, labels = tiny_case(rng)
            known = case.startswith("case")
            nnUNetDatasetBlosc2.save_case(
                image,
                labels if known else np.zeros_like(labels),
                _properties(image, labels if known else None),
                str((labelled if known else unlabelled) / case),
            )
            if known:
                sitk.WriteImage(sitk.GetImageFromArray(labels[0]), str(truth / f"{case}.nii.gz"))
        plans = tiny_plans(dim, patch or [16] * dim)
        plans["configurations"][name]["architecture"]["arch_kwargs"].update(arch_kwargs)
        dataset_json = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 6, "file_ending": ".nii.gz"}
        split = {"train": cases[:4], "val": cases[4:6], "unlabelled": cases[6:], "labelled_order": cases[:4]}
        for file, content in (("nnUNetPlans", plans), ("dataset", dataset_json), ("splits_final", [split])):
            (folder / f"{file}.json").write_text(json.dumps(content))
        (folder / "dataset_fingerprint.json").write_text("{}")
        return folder

    return make


MakeTrainer = Callable[..., Any]


@pytest.fixture
def make_trainer(make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> MakeTrainer:
    """Return a function that makes a trainer on the tiny data set; two epochs of `epoch` iterations by default.

    Without `staged` the method begins with the first iteration, without a supervised stage and without a look at the
    labelled patches, where the settings do not ask for them.
    """

    def make(
        class_name: str,
        dim: int = 3,
        epoch: int = 3,
        num_iterations: int = 6,
        device: str = "cpu",
        staged: bool = False,
        **run: Any,
    ) -> Any:
        import torch

        from nnssl.registry import find_method
        from nnssl.training import settings as run_settings

        folder = Path(os.environ.get("nnUNet_preprocessed", "/nowhere")) / DATASET
        if not folder.is_dir():
            folder = make_tiny(dim)
        monkeypatch.setattr(run_settings, "ITERATIONS_PER_EPOCH", epoch)
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        method = find_method(class_name).load()
        if not staged and hasattr(method.config_class, "supervised_share"):
            run["config"] = {"supervised_share": 0.0, "ready_dice": 0.0, **run.get("config", {})}
        plans["nnssl_semi"] = {"run": run_settings.RunSettings(num_iterations=num_iterations, **run).to_dict()}
        trainer = method(
            plans,
            "3d_fullres" if dim == 3 else "2d",
            0,
            json.loads((folder / "dataset.json").read_text()),
            torch.device(device),
        )
        trainer.num_val_iterations_per_epoch = 1
        return trainer

    return make
