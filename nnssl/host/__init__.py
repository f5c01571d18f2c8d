"""Everything that nnssl takes from inside nnU-Net.

This module holds the look-ups; they import nnU-Net when they are called, so that importing the module stays light.
`transforms` has the roles of nnU-Net's transforms. `surface` lists the names inside nnU-Net that nnssl relies on, and a
test compares the list with the installed version. Classes that derive from nnU-Net's stand beside the code that they
belong to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.names import DATASET_JSON, PREPROCESSED_VARIABLE, RAW_VARIABLE
from nnssl.system.files import write_json

PlansManager: TypeAlias = Any  # nnU-Net is not typed: these names say which of its objects is meant
ConfigurationManager: TypeAlias = Any
LabelManager: TypeAlias = Any
CaseDataset: TypeAlias = Any
ReaderClass: TypeAlias = type[Any]

log = logging.getLogger("nnssl.nnunet")


# ---------------------------------------------------------------------- classes that users name


def find_planner(name: str) -> Any:  # noqa: ANN401 - a class known by name only
    """Return nnU-Net's planner class of this name.

    Raises:
        UsageError: nnU-Net has no such planner.
    """
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    return find_class(name, "experiment_planning", ExperimentPlanner, "-pl")


def find_preprocessor(name: str) -> Any:  # noqa: ANN401
    """Return nnU-Net's preprocessor class of this name.

    Raises:
        UsageError: nnU-Net has no such preprocessor.
    """
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    return find_class(name, "preprocessing", DefaultPreprocessor, "-preprocessor_name")


def find_extractor(name: str) -> Any:  # noqa: ANN401
    """Return nnU-Net's fingerprint extractor class of this name.

    Raises:
        UsageError: nnU-Net has no such extractor.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    return find_class(name, "experiment_planning", DatasetFingerprintExtractor, "-fpe")


def find_class(name: str, package: str, base: type, option: str) -> Any:  # noqa: ANN401
    """Return the class that nnU-Net finds under a name in `nnunetv2.<package>`.

    Args:
        name: class name.
        package: where nnU-Net looks.
        base: the class must derive from this one.
        option: how a user gives the name, for the message.

    Raises:
        UsageError: nnU-Net has no such class, or the class does not derive from `base`.
    """
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = Path(nnunetv2.__path__[0], *package.split("."))
    found = recursive_find_python_class(str(folder), name, f"nnunetv2.{package}")
    if isinstance(found, type) and issubclass(found, base):
        return found
    raise UsageError(
        f"nnU-Net has no {base.__name__} called '{name}'",
        where=f"{option} {name}",
        why=f"nnssl looks for this class in nnunetv2/{package.replace('.', '/')}",
        run=f"{option} {base.__name__} is the default",
    )


def find_trainer(name: str) -> Any:  # noqa: ANN401
    """Return the trainer class that nnU-Net finds under this name; a first search imports all of nnU-Net's trainers."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    return recursive_find_trainer_class_by_name(name)


# ---------------------------------------------------------------------- planning


@contextlib.contextmanager
def temporary_dataset(name: str, dataset_json: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty preprocessed folder for a data set that nnU-Net reads from this `dataset_json`.

    Inside the block nnU-Net's folders are temporary ones. So nnU-Net sees the listed cases only, and the real folders
    stay untouched.

    Raises:
        EnvironmentProblem: nnU-Net could not read or write a file.
    """
    with tempfile.TemporaryDirectory(prefix="nnssl_plan_") as root:
        folders = {variable: Path(root, variable) for variable in (RAW_VARIABLE, PREPROCESSED_VARIABLE)}
        before = {variable: os.environ.get(variable) for variable in folders}
        for folder in folders.values():
            (folder / name).mkdir(parents=True)
        write_json(folders[RAW_VARIABLE] / name / DATASET_JSON, dataset_json)
        os.environ.update({variable: str(folder) for variable, folder in folders.items()})
        try:
            yield folders[PREPROCESSED_VARIABLE] / name
        except OSError as error:
            raise EnvironmentProblem(
                "nnU-Net's planning could not read or write a file",
                where=error.filename or root,
                why=str(error),
                run="free space or check permissions there; export TMPDIR=/a/folder puts temporary files elsewhere",
            ) from error
        finally:
            for variable, value in before.items():
                os.environ.pop(variable)
                if value is not None:
                    os.environ[variable] = value


class _LogLines:
    """A text stream that sends its lines to the log."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(None, map(str.rstrip, lines)):
            log.debug(line)
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line is logged when it is complete."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what nnU-Net prints, and its warnings, to the log at level DEBUG."""
    with contextlib.redirect_stdout(_LogLines()), warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        log.debug("%s", warning.message)


def plan_experiment(
    dataset: str, planner: type, gpu_gb: float | None, preprocessor: str, spacing: Sequence[float] | None, name: str
) -> None:
    """Let a planner class write the plans `name` of a data set; `spacing` is that of 3d_fullres in mm, or None."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    with _sizes_of_one_or_more(), contextlib.redirect_stderr(_LogLines()):  # nnU-Net prints tracebacks of readers
        plan_experiment_dataset(dataset, planner, gpu_gb, preprocessor, spacing, name)


@contextlib.contextmanager
def _sizes_of_one_or_more() -> Iterator[None]:
    """Let nnU-Net's planner count at least one voxel for every axis of a resampled scan, as preprocessing keeps one."""
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as module

    original = module.compute_new_shape

    def at_least_one(*arguments: Any) -> Any:  # noqa: ANN401
        return original(*arguments).clip(min=1)

    module.compute_new_shape = at_least_one
    try:
        yield
    finally:
        module.compute_new_shape = original


def fit_patch(spacing: Sequence[float], patch: Sequence[int], min_edge: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return the patch size, rounded up to what nnU-Net's pooling steps need, and the divisor of each axis.

    Args:
        spacing: voxel size of each axis.
        patch: wanted voxels of each axis.
        min_edge: smallest edge of a feature map in voxels.
    """
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    *_, fitted, divisors = get_pool_and_conv_props(spacing, patch, min_edge, 999_999)
    return fitted, divisors


# ---------------------------------------------------------------------- plans, networks, files


def plans_manager(plans: dict[str, Any]) -> PlansManager:
    """Return nnU-Net's view of the content of plans.json."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager as Manager

    return Manager(plans)


def input_channels(plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict[str, Any]) -> int:
    """Return the number of image channels that a network of this configuration takes."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    return int(determine_num_input_channels(plans, configuration, dataset_json))


def network_of_entry(entry: Mapping[str, Any], input_channels: int, num_classes: int, **kwargs: Any) -> Any:  # noqa: ANN401
    """Return the network that nnU-Net builds from an `architecture` entry of its plans.

    Args:
        entry: `network_class_name`, `arch_kwargs`, `_kw_requires_import`.
        input_channels: image channels.
        num_classes: output channels.
        **kwargs: `allow_init` and `deep_supervision`.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    parts = (entry[key] for key in ("network_class_name", "arch_kwargs", "_kw_requires_import"))
    return get_network_from_plans(*parts, input_channels, num_classes, **kwargs)


def readers() -> list[ReaderClass]:
    """Return nnU-Net's reader classes in the order in which nnU-Net tries them."""
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    return list(LIST_OF_IO_CLASSES)


def reader_named(name: str) -> ReaderClass:
    """Return nnU-Net's reader class of this name.

    Raises:
        RuntimeError: nnU-Net has no such reader.
    """
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    found: ReaderClass = recursive_find_reader_writer_by_name(name)
    return found


def reader_of(dataset_json: dict[str, Any], example: str | None, *, verbose: bool = True) -> ReaderClass:
    """Return the reader class that nnU-Net chooses for a data set: the first one that can read the example file.

    Raises:
        RuntimeError: no reader can.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    with contextlib.redirect_stderr(_LogLines()):  # nnU-Net prints the traceback of every reader that fails
        found: ReaderClass = determine_reader_writer_from_dataset_json(dataset_json, example, verbose=verbose)
    return found


READER_OF_3D_TIFF = "Tiff3DIO"
READERS_OF_PICTURES = ("NaturalImage2DIO",)  # one file holds all channels of a case


def companion_file(path: Path) -> Path | None:
    """Return the file in which nnU-Net keeps the voxel size of a mask or label, None for formats with a header.

    nnU-Net's reader of 3-D TIFF takes the voxel size of `CASE.tif` from `CASE.json`. The file need not exist.
    """
    return path.with_suffix(".json") if path.suffix.lower() in (".tif", ".tiff") else None


def size_file(image: Path) -> Path:
    """Return the file with the voxel size of a 3-D TIFF scan: `CASE.json` for `CASE_0000.tif`. It need not exist."""
    return image.with_name(re.sub(r"_\d{4}$", "", image.stem) + ".json")


# ---------------------------------------------------------------------- training and inference


def case_dataset_class(folder: str) -> type[Any]:
    """Return the class with which nnU-Net reads the preprocessed cases of a folder."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    found: type[Any] = infer_dataset_class(folder)
    return found


def sample_places(labels: Any, structures: Sequence[Any]) -> dict[Any, Any]:  # noqa: ANN401 - numpy arrays
    """Return places of each structure, (n, 1 + axes) with the channel first; empty where a structure has no voxel.

    These are the places from which nnU-Net's batch maker draws the centres of patches.

    Args:
        labels: label values (1, *S).
        structures: labels, or regions as tuples of labels.
    """
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    found: dict[Any, Any] = DefaultPreprocessor._sample_foreground_locations(labels, list(structures))
    return found


def cases_of(batch_maker: Any) -> CaseDataset:  # noqa: ANN401 - nnUNetDataLoader
    """Return the preprocessed cases that nnU-Net's batch maker draws from."""
    return batch_maker._data


def drawn_cases(batch_maker: Any) -> list[str]:  # noqa: ANN401 - nnUNetDataLoader
    """Return the cases of the batch that the batch maker would make with the present state of numpy's generator."""
    return list(batch_maker.get_indices())


def augmentation_workers() -> int:
    """Return nnU-Net's number of data loading processes for one GPU; `nnUNet_n_proc_DA` overrides it."""
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    return int(get_allowed_n_proc_DA())


def free_port() -> int:
    """Return a network port that is free for the processes of one machine."""
    from nnunetv2.run.run_training import find_free_network_port

    return int(find_free_network_port())


def mask_from_logits(
    logits: Any,  # noqa: ANN401 - a torch tensor
    plans: PlansManager,
    configuration: ConfigurationManager,
    labels: LabelManager,
    properties: dict[str, Any],
    probabilities: bool,
) -> Any:  # noqa: ANN401
    """Return the mask of the original scan, shape (z, y, x), and with `probabilities` a pair with these (C, z, y, x).

    Args:
        logits: (C, *S) on the grid of the preprocessed case.
        plans: nnU-Net's plans.
        configuration: the configuration of the network.
        labels: the plans' label manager.
        properties: what preprocessing noted about the scan.
        probabilities: also return probabilities.
    """
    import torch
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, configuration, labels, properties, probabilities, torch.get_num_threads()
    )


def forget_patch_weights() -> None:
    """Free the memory of the weight maps that nnU-Net keeps for overlapping patches."""
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    compute_gaussian.cache_clear()


def separate_axis(
    chosen: Mapping[str, Any], spacing: Sequence[float], new_spacing: Sequence[float]
) -> tuple[int | None, int]:
    """Return the axis along which nnU-Net resamples apart from the others, None for none, and the order there.

    Args:
        chosen: arguments of nnU-Net's resampling, from the plans.
        spacing: voxel size in mm.
        new_spacing: the later voxel size in mm, in the same order of axes.
    """
    from nnunetv2.configuration import ANISO_THRESHOLD
    from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

    threshold = chosen.get("separate_z_anisotropy_threshold", ANISO_THRESHOLD)
    apart, axis = determine_do_sep_z_and_axis(chosen.get("force_separate_z", False), spacing, new_spacing, threshold)
    return (int(axis) if apart else None), int(chosen.get("order_z", 0))
