"""From a model folder to a network that is ready to predict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.host import (
    ConfigurationManager,
    PlansManager,
    find_trainer,
    input_channels,
    network_of_entry,
    plans_manager,
    separate_axis,
)
from nnssl.host.preprocessing import KeepingConfiguration, checked_preprocessor
from nnssl.inference.checkpoint import Checkpoint, load_checkpoint
from nnssl.inference.interpolation import CUBIC, Array, resample_image
from nnssl.inference.restoring import RESAMPLING
from nnssl.names import DATASET_JSON, PLANS_JSON
from nnssl.system.files import DATASET_KEYS, PLANS_KEYS, read_object


class PredictingConfiguration(KeepingConfiguration):
    """A configuration that resamples scans as nnU-Net does, with a third of the memory where all axes are alike."""

    @property
    def resampling_fn_data(self) -> Callable[..., Any]:
        """The function that resamples images."""
        return partial(_resample_scan, self, super().resampling_fn_data)

    def in_slabs(self, spacing: Sequence[float], target: Sequence[float]) -> bool:
        """Return whether a scan is resampled with cubic interpolation of all axes together.

        Args:
            spacing: voxel size of the scan in mm.
            target: voxel size of the plans in mm, in the same order of axes.
        """
        entry = self.configuration
        options = entry["resampling_fn_data_kwargs"]
        known = entry["resampling_fn_data"] == RESAMPLING and not options.get("is_seg", False)
        cubic = options.get("order", CUBIC) == CUBIC
        return bool(known and cubic and separate_axis(options, spacing, target)[0] is None)


def _resample_scan(
    configuration: PredictingConfiguration,
    function: Callable[..., Any],
    data: Array,
    new_shape: Sequence[int],
    spacing: Sequence[float],
    target: Sequence[float],
) -> Any:  # noqa: ANN401 - an array
    if configuration.in_slabs(spacing, target):
        return resample_image(data, [max(1, int(size)) for size in new_shape])
    return function(data, new_shape, spacing, target)


@dataclass(frozen=True)
class LoadedModel:
    """Everything that a predictor needs.

    Attributes:
        network: network with the weights of the first fold, on the CPU.
        plans: nnU-Net's plans.
        configuration: the configuration that the checkpoints were trained with.
        preprocessing: the same configuration without resampling of label maps, which prediction does not use. Thin
            scans keep one slice.
        preprocessor: the plans' preprocessor, with a check of the normalised intensities.
        dataset_json: content of dataset.json.
        checkpoints: one checkpoint for each fold.
    """

    network: torch.nn.Module
    plans: PlansManager
    configuration: ConfigurationManager
    preprocessing: PredictingConfiguration
    preprocessor: Any
    dataset_json: dict[str, Any]
    checkpoints: list[Checkpoint]


def load_model(checkpoint_files: Sequence[Path]) -> LoadedModel:
    """Load the folds of one model from `…/fold_X/checkpoint_Y.pth` beside plans.json and dataset.json.

    Raises:
        UsageError: the configuration is the second stage of a cascade.
        DataError: plans.json or dataset.json cannot be read.
        EnvironmentProblem: a checkpoint is damaged or does not fit the network of the plans.
    """
    folder = checkpoint_files[0].parent.parent
    plans = plans_manager(read_object(folder / PLANS_JSON, keys=PLANS_KEYS))
    dataset_json = read_object(folder / DATASET_JSON, keys=DATASET_KEYS)
    checkpoints = [load_checkpoint(file) for file in checkpoint_files]
    name = checkpoints[0].configuration
    if name not in plans.available_configurations:
        raise EnvironmentProblem(
            f"the checkpoint was trained with the configuration {name}, which its plans do not have",
            where=checkpoint_files[0],
            why=f"configurations in {PLANS_JSON}: {', '.join(plans.available_configurations)}",
        )
    configuration = plans.get_configuration(name)
    if configuration.previous_stage_name is not None:
        raise UsageError(
            "cascades are not supported",
            where=folder,
            why=f"{name} refines the predictions of {configuration.previous_stage_name}",
            run="predict with nnUNetv2_predict, or choose another configuration with -c",
        )
    network = _network(plans, configuration, dataset_json, checkpoints[0])
    for file, checkpoint in reversed(list(zip(checkpoint_files, checkpoints, strict=True))):  # checks every fold
        _load_weights(network, checkpoint, file)
    preprocessing = _without_label_resampling(configuration)
    preprocessor = checked_preprocessor(configuration.preprocessor_class)(verbose=False)
    return LoadedModel(network, plans, configuration, preprocessing, preprocessor, dataset_json, checkpoints)


def _network(
    plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict[str, Any], checkpoint: Checkpoint
) -> torch.nn.Module:
    inputs = input_channels(plans, configuration, dataset_json)
    outputs = plans.get_label_manager(dataset_json).num_segmentation_heads
    network: torch.nn.Module
    if checkpoint.ours or checkpoint.trainer == "nnUNetTrainer":
        entry = configuration.configuration["architecture"]
        network = network_of_entry(entry, inputs, outputs, allow_init=False, deep_supervision=False)
    else:
        build = find_trainer(checkpoint.trainer).build_network_architecture
        network = build(plans, configuration, inputs, outputs, enable_deep_supervision=False)
    return network


def _load_weights(network: torch.nn.Module, checkpoint: Checkpoint, file: Path) -> None:
    try:
        network.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        ours, theirs = network.state_dict().keys(), checkpoint.weights.keys()
        counts = f"of {len(ours)} weights {len(ours - theirs)} are missing, {len(theirs - ours)} are of another network"
        raise EnvironmentProblem(
            "the checkpoint does not fit the network of the plans",
            where=file,
            why=counts if ours ^ theirs else "\n".join(line.strip() for line in str(error).splitlines()[:3]),
            run="predict with the plans.json of this training, or train the fold again",
        ) from error


def _without_label_resampling(configuration: ConfigurationManager) -> PredictingConfiguration:
    entries = copy.deepcopy(configuration.configuration)
    if configuration.preprocessor_name == "DefaultPreprocessor":
        entries["resampling_fn_seg"], entries["resampling_fn_seg_kwargs"] = "no_resampling_hack", {}
    return PredictingConfiguration(entries)
