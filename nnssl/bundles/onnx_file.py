"""The network of one fold as ONNX file: one patch, fixed axes, compared with torch before the file is kept."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.errors import DataError, EnvironmentProblem
from nnssl.names import CHECKPOINT_FINAL, FOLD_PREFIX
from nnssl.system.files import replacing

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of the largest logit
OPSET = 18
SEED = 0


def check_packages() -> None:
    """Check that the packages for ONNX are there.

    Raises:
        EnvironmentProblem: one of them is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"--onnx needs {', '.join(missing)}",
            why="these packages are not part of the plain installation",
            run='pip install "nnssl-semi[onnx]"',
        )


def write_onnx(model: Path, fold: str, file: Path) -> float:
    """Write the network of a fold for one patch, and return how far its logits are from torch's.

    The input `image` has the shape (1, C, *patch) and holds preprocessed intensities, the output `logits` the shape
    (1, classes or regions, *patch). All axes are fixed. The metadata of the file hold what a program needs around the
    network: patch size, spacing in mm, order of axes, normalisation, channels and labels.

    Args:
        model: model folder.
        fold: its name.
        file: the ONNX file.

    Returns:
        Largest absolute difference of the logits, for one patch of normal noise.

    Raises:
        DataError: onnxruntime and torch differ by more than 0.1 % of the largest logit; no file is kept.
        EnvironmentProblem: a checkpoint is damaged, torch cannot translate the network, or the file cannot be written.
    """
    import onnx
    import onnxruntime
    import torch

    from nnssl.host import input_channels
    from nnssl.inference.network import load_model

    loaded = load_model([model / f"{FOLD_PREFIX}{fold}" / CHECKPOINT_FINAL])
    network = loaded.network.eval()
    channels = input_channels(loaded.plans, loaded.configuration, loaded.dataset_json)
    shape = (1, channels, *loaded.configuration.patch_size)
    patch = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    with torch.inference_mode():
        expected = network(patch).numpy()
    with replacing(file) as temporary:
        try:
            torch.onnx.export(
                network, (patch,), str(temporary), input_names=["image"], output_names=["logits"], opset_version=OPSET,
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
        except Exception as error:  # the translation fails in many ways
            raise EnvironmentProblem(
                "torch cannot translate the network into ONNX",
                where=model,
                why=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
                run="export without --onnx",
            ) from error
        content = onnx.load(str(temporary))
        onnx.helper.set_model_props(content, _metadata(loaded))
        onnx.save(content, str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        (found,) = session.run(["logits"], {"image": patch.numpy()})
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE * float(np.abs(expected).max()):
            raise DataError(
                "the ONNX file does not give the logits of the model; it was not kept",
                where=file,
                why=f"largest difference {difference:.3g}, largest logit {np.abs(expected).max():.3g}",
            )
    return difference


def _metadata(loaded: Any) -> dict[str, str]:  # noqa: ANN401 - LoadedModel, whose module imports torch
    """Return what a program needs to know around the network, as texts."""
    plans, configuration = loaded.plans.plans, loaded.configuration
    facts = {
        "patch_size": list(configuration.patch_size),
        "spacing_mm": list(configuration.spacing),
        "transpose_forward": plans["transpose_forward"],
        "normalization_schemes": configuration.normalization_schemes,
        "foreground_intensity_properties_per_channel": plans.get("foreground_intensity_properties_per_channel"),
        "channel_names": loaded.dataset_json.get("channel_names") or loaded.dataset_json.get("modality"),
        "labels": loaded.dataset_json["labels"],
        "regions_class_order": loaded.dataset_json.get("regions_class_order"),
        "mirror_axes": loaded.checkpoints[0].mirror_axes,
    }
    return {name: json.dumps(value) for name, value in facts.items()}
