"""A small model with random weights in nnU-Net's folder layout, and scans for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from tests.conftest import DATASET, LABELS, tiny_plans

SPACING = (0.9, 1.1, 1.6)  # in the file's order x, y, z
ORIGIN = (-7.0, 12.5, 3.0)
DIRECTION = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def checkpoint_content(plans: dict[str, Any], seed: int, channels: int = 1) -> dict[str, Any]:
    """Return a slim checkpoint of the plans' network with random weights and clear-cut outputs."""
    (name, configuration), *_ = plans["configurations"].items()
    arch = configuration["architecture"]
    torch.manual_seed(seed)
    network = get_network_from_plans(
        arch["network_class_name"],
        arch["arch_kwargs"],
        arch["_kw_requires_import"],
        channels,
        len(LABELS),
        deep_supervision=False,
    )
    patch = configuration["patch_size"]
    head = network.decoder.seg_layers[-1]
    with torch.no_grad():
        head.weight *= 20
        logits = network(torch.randn(2, channels, *patch))
        head.bias -= logits.mean(dim=(0, *range(2, logits.ndim)))
    weights = network.state_dict()
    return {
        "network_weights": weights,
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": name},
        "inference_allowed_mirroring_axes": tuple(range(len(patch))),
        "nnssl_semi": {},
    }


def write_model(
    results: Path,
    *,
    folds=(0,),
    dim=3,
    channels=1,
    trainer="SupervisedTrainer",
    patch=(16, 16, 16),
    features=(4, 8, 8),
    **changes,
) -> Path:
    """Write a model folder below `results` and return it; `changes` go into the plans."""
    plans = {**tiny_plans(dim, list(patch[:dim])), **changes}
    ((name, configuration),) = plans["configurations"].items()
    stages = len(features)
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(features),
        "kernel_sizes": [[3] * dim] * stages,
        "strides": [[1] * dim] + [[2] * dim] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    for key in ("normalization_schemes", "use_mask_for_norm"):
        configuration[key] *= channels
    intensities = plans["foreground_intensity_properties_per_channel"]
    intensities |= {str(channel): intensities["0"] for channel in range(channels)}
    folder = results / DATASET / f"{trainer}__nnUNetPlans__{name}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    names = {str(channel): f"channel {channel}" for channel in range(channels)}
    dataset_json = {"labels": LABELS, "channel_names": names, "numTraining": 4, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for fold in folds:
        (folder / f"fold_{fold}").mkdir()
        seed = int(fold) if str(fold).isdigit() else 99
        torch.save(checkpoint_content(plans, seed, channels), folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def make_scan(seed: int, shape=(14, 20, 18), spacing=SPACING, dtype=np.float32) -> SimpleITK.Image:
    """Return a random scan with a direction that is not the identity; `shape` is (z, y, x)."""
    array = np.random.default_rng(seed).normal(100, 30, shape).astype(dtype)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing[: len(shape)])
    image.SetOrigin(ORIGIN[: len(shape)])
    if len(shape) == 3:
        image.SetDirection(DIRECTION)
    return image


def write_scans(folder: Path, count=3, channels=1, **options) -> Path:
    """Write `case_0`, `case_1`, … with their channels and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in range(count):
        for channel in range(channels):
            scan = make_scan(10 * case + channel, **options)
            SimpleITK.WriteImage(scan, str(folder / f"case_{case}_{channel:04d}.nii.gz"))
    return folder


def read_mask(path: Path) -> np.ndarray:
    """Return a mask's array (z, y, x)."""
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
