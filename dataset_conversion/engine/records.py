"""What a converter reports about a download: plain values, which can be sent to every worker process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from nnssl.data.labels import Label, label_parts

Part = Literal["labelled", "unlabelled", "test"]


class Source(Protocol):
    """One volume of a download. Implementations are frozen dataclasses of plain values, see `sources`."""

    def files(self) -> tuple[Path, ...]:
        """Return the files that hold the volume."""
        ...

    def read(self) -> Any:  # noqa: ANN401 - SimpleITK has no types
        """Return the volume as a 3-D `SimpleITK.Image`; only colour pictures have more than one component."""
        ...


@dataclass(frozen=True)
class SourceRecord:
    """One case of a download.

    Attributes:
        case: name in the data set; ASCII, and always the same for the same download.
        channels: one source for each channel.
        part: `labelled` goes to imagesTr and labelsTr, `unlabelled` to imagesUn, `test` to imagesTs (and labelsTs).
        label: source of the label; None for unlabelled cases and for test cases whose label is not public.
        patient: the patient; empty if each case is a patient.
        named: the patient's name in the download if the same scan under two names turned out to be one patient.
        domain: scanner, vendor or modality; empty if the data set has a single domain.
    """

    case: str
    channels: tuple[Source, ...]
    part: Part
    label: Source | None = None
    patient: str = ""
    domain: str = ""
    named: str = ""

    @property
    def person(self) -> str:
        """The patient, or the case if the patient has no name."""
        return self.patient or self.case

    def sources(self) -> list[Source]:
        """Return the sources of the channels and of the label, if any."""
        return [*self.channels, *([self.label] if self.label else [])]

    def files(self) -> list[Path]:
        """Return the files of all sources, each once."""
        return list(dict.fromkeys(path for source in self.sources() for path in source.files()))


@dataclass(frozen=True)
class Found:
    """Everything that a converter found in a download folder, and the problems of the layout.

    Attributes:
        records: the cases.
        channel_names: as in dataset.json.
        labels: as in dataset.json: name -> value, or values for a region. Empty takes the values that occur, 0 to the
            highest, with the names label_1, label_2, …
        label_values: value in the download -> value in the data set; other values are a problem. Empty keeps the
            values, which must then be those of `labels`.
        regions_class_order: as in dataset.json.
        problems: problems of the layout: missing folders, wrong nesting, tables that lack a row.
        ignored: files that belong to the layout but are not converted.
        notes: what the user should know, though it is no problem.
        warnings: what the user should look at before the training.
        name: name of the data set if the download itself tells one.
        strict: whether an image file below the folder that is neither used nor ignored is a problem.
        channels_per_file: number of channels that one source holds: 3 for colour pictures.
        file_ending: ending of the files of the data set.
    """

    records: tuple[SourceRecord, ...]
    channel_names: tuple[str, ...]
    labels: Mapping[str, Label]
    label_values: Mapping[int, int] = field(default_factory=dict)
    regions_class_order: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    ignored: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    name: str = ""
    strict: bool = True
    channels_per_file: int = 1
    file_ending: str = ".nii.gz"

    def allowed_values(self) -> dict[int, int]:
        """Return value in the download -> value in the data set; empty if every value is allowed."""
        if self.label_values:
            return dict(self.label_values)
        return {value: value for part in self.labels.values() for value in label_parts(part)}
