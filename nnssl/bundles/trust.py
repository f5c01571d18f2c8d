"""Plans from outside name classes and functions that nnU-Net imports: only known names may stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from nnssl.names import LABELS_KEY

NETWORK = re.compile(
    r"dynamic_network_architectures\.architectures\.\w+\.[A-Z]\w*|nnssl\.networks\.\w+\.[A-Z]\w*", re.ASCII
)
PART = re.compile(
    r"torch\.nn(\.modules\.(conv|instancenorm|batchnorm|normalization|activation|dropout))?\.[A-Z]\w*"
    r"|dynamic_network_architectures\.(building_blocks|architectures)\.\w+\.[A-Z]\w*",
    re.ASCII,
)
NETWORK_KEY, IMPORTS_KEY, ARGUMENTS_KEY = "network_class_name", "_kw_requires_import", "arch_kwargs"
RESAMPLING = {
    "resample_data_or_seg_to_shape", "resample_torch_fornnunet", "resample_torch_simple", "no_resampling_hack",
}  # fmt: skip
KNOWN = {
    "image_reader_writer": {"NaturalImage2DIO", "SimpleITKIO", "Tiff3DIO", "NibabelIO", "NibabelIOWithReorient"},
    "label_manager": {"LabelManager"},
    "preprocessor_name": {"DefaultPreprocessor"},
    "UNet_class_name": {"PlainConvUNet", "ResidualEncoderUNet"},
    "resampling_fn_data": RESAMPLING,
    "resampling_fn_seg": RESAMPLING,
    "resampling_fn_probabilities": RESAMPLING,
}
NORMALISATIONS = {
    "ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization",
}  # fmt: skip


def problems_of_plans(plans: Mapping[str, Any]) -> list[str]:
    """Return what makes plans from outside unsafe: classes and functions that are neither nnU-Net's nor nnssl's.

    nnU-Net imports the classes that plans name, so that any installed module could be run by plans.
    """
    problems = []
    for entry in _objects_in(plans):
        for key, known in KNOWN.items():
            if key in entry and not _is_one_of(entry[key], known):
                problems.append(f"{key} is {entry[key]!r}")
        schemes = entry.get("normalization_schemes", [])
        if not (isinstance(schemes, list) and all(_is_one_of(each, NORMALISATIONS) for each in schemes)):
            problems.append(f"normalization_schemes is {schemes!r}")
        problems += _problems_of_network(entry)
    if not isinstance(plans.get("configurations"), dict):
        problems.append("there are no configurations")
    return problems


def problems_of_description(dataset_json: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a dataset.json from outside, as far as prediction reads it."""
    reader = dataset_json.get("overwrite_image_reader_writer", "None")
    ending = dataset_json.get("file_ending")
    known = _is_one_of(reader, {"None", *KNOWN["image_reader_writer"]})
    problems = [] if known else [f"the reader is {reader!r}"]
    if not (isinstance(ending, str) and re.fullmatch(r"(\.[A-Za-z0-9]+){1,3}", ending)):
        problems.append(f"file_ending is {ending!r}")
    if not isinstance(dataset_json.get(LABELS_KEY), dict):
        problems.append("there are no labels")
    return problems


def _problems_of_network(entry: Mapping[str, Any]) -> list[str]:
    problems = []
    if NETWORK_KEY in entry and not _fits(NETWORK, entry[NETWORK_KEY]):
        problems.append(f"{NETWORK_KEY} is {entry[NETWORK_KEY]!r}")
    imports, arguments = entry.get(IMPORTS_KEY, []), entry.get(ARGUMENTS_KEY, {})
    if not isinstance(imports, list) or not isinstance(arguments, dict):
        return [*problems, f"{IMPORTS_KEY} is no list, or {ARGUMENTS_KEY} is no object"]
    for name in imports:
        value = arguments.get(name) if isinstance(name, str) else name
        if value is not None and not _fits(PART, value):
            problems.append(f"{name} is {value!r}")
    return problems


def _is_one_of(value: object, known: set[str]) -> bool:
    return isinstance(value, str) and value in known


def _fits(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _objects_in(content: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - JSON
    """Yield all objects in nested plain values."""
    if isinstance(content, dict):
        yield content
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _objects_in(part)
