"""The one parser of `labels` in dataset.json: label values, regions and the ignore label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nnssl.names import LABELS_KEY

BACKGROUND_LABEL, IGNORE_LABEL = "background", "ignore"

Label = int | tuple[int, ...]  # a label value, or the values of a region


@dataclass(frozen=True)
class DeclaredLabels:
    """The labels that a dataset.json declares, read as nnU-Net reads them.

    Attributes:
        values: name -> the values of a label or region, in the order of dataset.json; the background is among them,
            the ignore label is not.
        listed: names whose value dataset.json writes as a list.
        ignore: value of the ignore label, None without one.
    """

    values: Mapping[str, tuple[int, ...]]
    listed: frozenset[str] = frozenset()
    ignore: int | None = None

    @property
    def has_regions(self) -> bool:
        """Whether networks are trained on regions: at least one entry unites several values."""
        return any(len(values) > 1 for values in self.values.values())

    @property
    def foreground(self) -> dict[Label, str]:
        """Label or region -> name, without the background.

        Where a data set has regions, an entry that is written as a list is a region even with a single value.
        """
        return {
            values if self.has_regions and name in self.listed else values[0]: name
            for name, values in self.values.items()
            if set(values) - {0}
        }

    @property
    def allowed(self) -> tuple[int, ...]:
        """The values that a label map may hold, sorted; the ignore label is not among them."""
        return tuple(sorted({0, *(value for values in self.values.values() for value in values)}))

    @property
    def allowed_in_references(self) -> tuple[int, ...]:
        """The values that a reference may hold: `allowed`, and the ignore label."""
        return self.allowed if self.ignore is None else (*self.allowed, self.ignore)


def label_parts(value: Any) -> tuple[int, ...]:  # noqa: ANN401 - whatever stands in JSON
    """Return the values of one entry of `labels`: those of a region, or the single one of a label.

    Raises:
        TypeError, ValueError: the entry holds something else than whole numbers.
    """
    parts: Iterable[Any] = value if isinstance(value, list | tuple) else (value,)
    return tuple(int(part) for part in parts)


def parse_labels(dataset_json: Mapping[str, Any]) -> DeclaredLabels:
    """Return the labels of a dataset.json; digits in quotes count as numbers, as in nnU-Net.

    Raises:
        TypeError: `labels` is missing or is no JSON object, or a value is neither a number nor a list of numbers.
        ValueError: a value is text that is no number.
    """
    declared = dataset_json.get(LABELS_KEY)
    if not isinstance(declared, Mapping):
        raise TypeError('"labels" must map names to whole numbers')
    values = {str(name): label_parts(value) for name, value in declared.items()}
    ignore = values.pop(IGNORE_LABEL, ())
    listed = frozenset(str(name) for name, value in declared.items() if isinstance(value, list | tuple))
    return DeclaredLabels(values, listed - {IGNORE_LABEL}, ignore[0] if ignore else None)


def find_label_problems(dataset_json: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the labels of a dataset.json; an empty list means that nnU-Net can be trained on them.

    Training needs more than `parse_labels` does: integers, the background as 0, consecutive values, the ignore label
    above all others, and `regions_class_order` for regions.
    """
    labels = dataset_json.get(LABELS_KEY)
    if not isinstance(labels, dict):
        return [f"dataset.json: labels is {labels!r}, it must map names to values, background to 0"]
    background = labels.get(BACKGROUND_LABEL)
    if background != 0 or isinstance(background, bool):
        hint = " (it maps values to names: turn it round)" if "0" in labels else ""
        found = f"background is {background!r}" if BACKGROUND_LABEL in labels else "background is missing"
        return [f"dataset.json: labels: {found}, it must be 0{hint}"]
    parts = {name: value if isinstance(value, list) else [value] for name, value in labels.items()}
    strange = [name for name, part in parts.items() if not part or not all(type(value) is int for value in part)]
    if strange:
        return [f"dataset.json: labels: {name} is {labels[name]!r}, it must be an integer" for name in strange]
    return _value_problems(labels, parts) + _region_problems(labels, dataset_json.get("regions_class_order"))


def _value_problems(labels: Mapping[str, Any], parts: Mapping[str, list[int]]) -> list[str]:
    values = sorted({value for name, part in parts.items() if name != IGNORE_LABEL for value in part})
    problems = []
    if values != list(range(len(values))):
        problems.append(
            f"dataset.json: labels has the values {values}, they must be consecutive: {list(range(len(values)))}"
        )
    if IGNORE_LABEL in labels and labels[IGNORE_LABEL] != values[-1] + 1:
        problems.append(
            f"dataset.json: labels: ignore is {labels[IGNORE_LABEL]!r}, it must be the highest value: {values[-1] + 1}"
        )
    return problems


def _region_problems(labels: Mapping[str, Any], order: Any) -> list[str]:  # noqa: ANN401 - whatever stands in JSON
    if not any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        return []
    regions = [name for name, value in labels.items() if name != IGNORE_LABEL and value not in (0, [0])]
    if isinstance(order, list) and len(order) == len(regions):
        return []
    return [f"dataset.json: regions_class_order is {order!r}, it must hold one value for each of {', '.join(regions)}"]
