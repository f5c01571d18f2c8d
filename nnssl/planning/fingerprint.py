"""nnU-Net's data set fingerprint of the labelled cases that the plans may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from nnssl.data.raw import channels_of
from nnssl.errors import DataError
from nnssl.host import find_extractor, quiet, reader_of, temporary_dataset
from nnssl.names import LABELS_TR
from nnssl.planning.scope import Scope
from nnssl.system.files import read_object, settings_hash, write_json
from nnssl.system.workers import run_parallel

PERCENTILES = {"percentile_00_5": 0.5, "median": 50.0, "percentile_99_5": 99.5}


def dataset_fingerprint(
    scope: Scope, num_processes: int, extractor: str = "DatasetFingerprintExtractor", clean: bool = False
) -> dict[str, Any]:
    """Return nnU-Net's fingerprint of the scope's labelled cases; the file `dataset_fingerprint<tag>.json` holds it.

    A second file, `dataset_fingerprint_unlabelled<tag>.json`, holds spacings and shapes of the unlabelled scans and a
    hash of the labelled files. When labelled files change, the fingerprint is computed again.

    Args:
        scope: the cases.
        num_processes: worker processes.
        extractor: name of nnU-Net's extractor class.
        clean: compute the fingerprint in any case.

    Raises:
        UsageError: nnU-Net has no such extractor.
        DataError: no labelled case has foreground, or intensities below a label are too large for statistics.
    """
    path = scope.preprocessed / f"dataset_fingerprint{scope.tag}.json"
    record_path = scope.preprocessed / f"dataset_fingerprint_unlabelled{scope.tag}.json"
    labelled_files = settings_hash([extractor, version("nnunetv2"), scope.sources(scope.labelled)])
    known = read_object(record_path) if record_path.is_file() else {}
    record = {
        "labelled_files": labelled_files,
        "unlabelled": {
            case: {"spacing_mm": list(scope.facts[case].spacing_mm), "shape": list(scope.facts[case].shape)}
            for case in scope.unlabelled
        },
    }
    if clean or not path.is_file() or known.get("labelled_files") != labelled_files:
        record_path.unlink(missing_ok=True)
        write_json(path, _extract(scope, num_processes, extractor))
    if known != record or not record_path.is_file():
        write_json(record_path, record)
    return read_object(path)


def _extract(scope: Scope, num_processes: int, extractor: str) -> dict[str, Any]:
    found = find_extractor(extractor)
    description = scope.dataset_json()
    cases = description["dataset"]
    with temporary_dataset(scope.raw.name, description), quiet():
        reader = reader_of(description, cases[scope.labelled[0]]["images"][0])
        total = found(scope.raw.name, num_processes).num_foreground_voxels_for_intensitystats
    tasks = {
        name: (found, case["images"], case["label"], reader, int(total // len(cases))) for name, case in cases.items()
    }
    by_case = run_parallel(_analyse, tasks, num_processes, "fingerprint")
    for name, (_, _, intensities, _) in by_case.items():
        _check_intensities(cases[name]["images"], intensities)
    results = list(by_case.values())
    return {
        "spacings": [[float(mm) for mm in spacing] for _, spacing, _, _ in results],
        "shapes_after_crop": [[int(n) for n in shape] for shape, _, _, _ in results],
        "foreground_intensity_properties_per_channel": {
            str(channel): _intensity_statistics([intensities[channel] for _, _, intensities, _ in results], scope)
            for channel in range(len(channels_of(description)))
        },
        "median_relative_size_after_cropping": float(np.median([relative for *_, relative in results])),
    }


def _analyse(task: tuple[Any, Sequence[str], str, Any, int]) -> tuple[Any, Any, Any, Any]:
    extractor, images, label, reader, samples = task
    shape, spacing, intensities, _, relative = extractor.analyze_case(images, label, reader, samples)
    return shape, spacing, intensities, relative


def _check_intensities(images: Sequence[str], intensities: Sequence[Any]) -> None:
    """Check that the voxels below the label have a mean and a standard deviation, channel by channel."""
    for channel, values in enumerate(map(np.asarray, intensities)):
        with np.errstate(over="ignore", invalid="ignore"):
            bad = values.size > 0 and not np.isfinite([np.mean(values), np.std(values)]).all()
        if bad:
            extreme = float(values[np.argmax(np.abs(values))])
            raise DataError(
                f"the intensities of channel {channel} cannot be normalised",
                where=images[min(channel, len(images) - 1)],
                why=f"mean and standard deviation below the label overflow: the largest value is {extreme:.6g}",
                run="replace the value by one of the scan's own range, its background for example",
            )


def _intensity_statistics(parts: Sequence[Any], scope: Scope) -> Mapping[str, float]:
    values = np.concatenate(parts)
    if not values.size:
        raise DataError(
            "no labelled case has foreground",
            where=scope.raw.folder / LABELS_TR,
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
