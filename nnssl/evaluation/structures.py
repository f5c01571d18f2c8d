"""The labels to evaluate and the reader of the files, from dataset.json and plans.json or from a list of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.data.labels import Label, parse_labels
from nnssl.data.read_errors import explain_read_error
from nnssl.errors import DataError
from nnssl.host import reader_named, readers
from nnssl.names import FILE_ENDING_KEY, LABELS_KEY


@dataclass(frozen=True)
class Structures:
    """The labels to evaluate.

    Attributes:
        names: label or region -> name, in the order of the tables.
        ignore_label: reference voxels with this value are not scored.
        allowed: the values that a label map may hold; None if no dataset.json declares them.
    """

    names: dict[Label, str]
    ignore_label: int | None = None
    allowed: frozenset[int] | None = None


def declared_structures(dataset_json: Mapping[str, Any], path: Path) -> Structures:
    """Return the foreground labels of a dataset.json, or the regions of a data set that is trained on regions.

    Raises:
        DataError: `labels` is missing, holds something other than whole numbers, or declares no foreground.
    """
    declared = dataset_json.get(LABELS_KEY)
    if not isinstance(declared, Mapping):
        raise DataError("dataset.json declares no labels", where=path, why='"labels" must map names to whole numbers')
    try:
        labels = parse_labels(dataset_json)
    except (TypeError, ValueError):
        raise DataError(
            "dataset.json declares labels that are not whole numbers",
            where=path,
            why=f'"labels" must map names to whole numbers, or to lists of them; it is {dict(declared)}',
        ) from None
    if not labels.foreground:
        raise DataError("dataset.json declares no foreground label", where=path)
    return Structures(labels.foreground, labels.ignore, frozenset(labels.allowed))


def listed_structures(labels: Sequence[Label], ignore_label: int | None, declared: Structures | None) -> Structures:
    """Return the labels that a user listed, with their names in dataset.json if that file is given.

    Other values count as background, as in `nnUNetv2_evaluate_simple`.
    """
    known = declared.names if declared else {}
    hashable = [tuple(label) if isinstance(label, list | tuple) else label for label in labels]
    return Structures({label: known.get(label, f"label {label}") for label in hashable}, ignore_label)


def file_ending(dataset_json: Mapping[str, Any] | None, folder: Path) -> str:
    """Return the ending of the label files: the one in dataset.json, or that of the files in the folder.

    Raises:
        DataError: the files have several endings, or none that nnU-Net reads.
    """
    if dataset_json is not None and dataset_json.get(FILE_ENDING_KEY):
        return str(dataset_json[FILE_ENDING_KEY])
    known: list[str] = sorted({ending for reader in readers() for ending in reader.supported_file_endings})
    found = sorted({ending for file in folder.iterdir() for ending in known if file.name.endswith(ending)})
    if len(found) != 1:
        raise DataError(
            f"the files have several endings: {', '.join(found)}" if found else "the folder holds no label files",
            where=folder,
            why=f"nnU-Net reads files that end with: {', '.join(known)}",
            run="-djfile /path/to/dataset.json" if found else "",
        )
    return found[0]


def find_reader(
    plans: Mapping[str, Any] | None, dataset_json: Mapping[str, Any] | None, ending: str, example: Path
) -> type[Any]:
    """Return the reader class that the plans or dataset.json name, or the first of nnU-Net's that reads `example`.

    Raises:
        DataError: the named reader does not exist, or no reader can read the file.
    """
    name = (plans or {}).get("image_reader_writer") or (dataset_json or {}).get("overwrite_image_reader_writer")
    if name and name != "None":
        try:
            named: type[Any] = reader_named(name)
        except RuntimeError as error:
            raise DataError(f"nnU-Net has no reader '{name}'", where="plans.json, dataset.json") from error
        return named
    reasons: list[str] = []
    hints: list[str] = []
    for reader in readers():
        if ending.lower() in reader.supported_file_endings:
            try:
                reader().read_seg(str(example))
            except Exception as error:
                problem = explain_read_error(error)
                reasons.append(f"{reader.__name__}: {problem.cause}")
                hints.append(problem.hint)
            else:
                return reader
    raise DataError(
        "no reader can read the label file",
        where=example,
        why="\n".join(reasons) or f"ending {ending}",
        run="\n".join(hints[:1]),
    )
