"""nnU-Net's data set fingerprint, from the labelled cases that the plans may see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from nnssl.data.raw import channels_of
from nnssl.errors import DataError
from nnssl.planning.nnunet import find_class, quiet, temporary_dataset
from nnssl.planning.scope import Scope
from nnssl.system.files import read_object, settings_hash, write_json
from nnssl.system.workers import run_parallel

PERCENTILES = {"percentile_00_5": 0.5, "median": 50.0, "percentile_99_5": 99.5}


def dataset_fingerprint(
    scope: Scope, num_processes: int, extractor: str = "DatasetFingerprintExtractor", clean: bool = False
) -> dict[str, Any]:
    """Return nnU-Net's fingerprint of the scope's labelled cases, and keep it in `dataset_fingerprint<tag>.json`.

    Spacings and shapes of the unlabelled scans stand beside it, in `dataset_fingerprint_unlabelled<tag>.json`, together
    with a hash of the labelled files: a fingerprint of other files is made anew.

    Args:
        scope: the cases.
        num_processes: worker processes.
        extractor: name of nnU-Net's extractor class.
        clean: make it anew in any case.

    Raises:
        UsageError: no such extractor.
        DataError: no labelled case has foreground.
    """
    path = scope.preprocessed / f"dataset_fingerprint{scope.tag}.json"
    beside = scope.preprocessed / f"dataset_fingerprint_unlabelled{scope.tag}.json"
    made_from = settings_hash([extractor, version("nnunetv2"), scope.sources(scope.labelled)])
    known = read_object(beside) if beside.is_file() else {}
    record = {
        "labelled_files": made_from,
        "unlabelled": {
            case: {"spacing_mm": list(scope.facts[case].spacing_mm), "shape": list(scope.facts[case].shape)}
            for case in scope.unlabelled
        },
    }
    if clean or not path.is_file() or known.get("labelled_files") != made_from:
        beside.unlink(missing_ok=True)
        write_json(path, _extracted(scope, num_processes, extractor))
    if known != record or not beside.is_file():
        write_json(beside, record)
    return read_object(path)


def find_extractor(name: str) -> Any:  # noqa: ANN401 - a class known by name only
    """Return nnU-Net's fingerprint extractor class of that name.

    Raises:
        UsageError: there is none.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    return find_class(name, "experiment_planning", DatasetFingerprintExtractor, "-fpe")


def _extracted(scope: Scope, num_processes: int, extractor: str) -> dict[str, Any]:
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    found = find_extractor(extractor)
    description = scope.dataset_json()
    cases = description["dataset"]
    with temporary_dataset(scope.raw.name, description), quiet():
        reader = determine_reader_writer_from_dataset_json(description, cases[scope.labelled[0]]["images"][0])
        total = found(scope.raw.name, num_processes).num_foreground_voxels_for_intensitystats
    tasks = {
        name: (found, case["images"], case["label"], reader, int(total // len(cases))) for name, case in cases.items()
    }
    results = list(run_parallel(_analyse, tasks, num_processes, "fingerprint").values())
    return {
        "spacings": [[float(mm) for mm in spacing] for _, spacing, _, _ in results],
        "shapes_after_crop": [[int(n) for n in shape] for shape, _, _, _ in results],
        "foreground_intensity_properties_per_channel": {
            str(channel): _intensity([intensities[channel] for _, _, intensities, _ in results], scope)
            for channel in range(len(channels_of(description)))
        },
        "median_relative_size_after_cropping": float(np.median([relative for *_, relative in results])),
    }


def _analyse(task: tuple[Any, Sequence[str], str, Any, int]) -> tuple[Any, Any, Any, Any]:
    extractor, images, label, reader, samples = task
    shape, spacing, intensities, _, relative = extractor.analyze_case(images, label, reader, samples)
    return shape, spacing, intensities, relative


def _intensity(parts: Sequence[Any], scope: Scope) -> Mapping[str, float]:
    values = np.concatenate(parts)
    if not values.size:
        raise DataError(
            "no labelled case has foreground",
            where=scope.raw.folder / "labelsTr",
            why=f"the labels of {', '.join(scope.labelled[:5])} are background only",
            run="add labels with foreground, or take a larger label budget",
        )
    low, median, high = np.percentile(values, list(PERCENTILES.values()))
    return {
        "mean": float(np.mean(values)),
        "median": float(median),
        "std": float(np.std(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "percentile_99_5": float(high),
        "percentile_00_5": float(low),
    }
