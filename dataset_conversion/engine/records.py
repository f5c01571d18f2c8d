"""What a converter says about a download: plain values that every worker process can be given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Part = Literal["labelled", "unlabelled", "test"]


class Source(Protocol):
    """One volume of a download. Implementations are frozen dataclasses of plain values; see `sources`."""

    def files(self) -> tuple[Path, ...]:
        """Return the files that the volume is made from."""
        ...

    def read(self) -> Any:  # noqa: ANN401 - SimpleITK has no types
        """Return the volume as a 3-D `SimpleITK.Image` with one component."""
        ...


@dataclass(frozen=True)
class Record:
    """One case.

    Attributes:
        case: its name in the data set; ASCII, and the same for the same download always.
        channels: one source a channel.
        part: `labelled` goes to imagesTr and labelsTr, `unlabelled` to imagesUn, `test` to imagesTs (and labelsTs).
        label: source of the label; None for unlabelled cases, and for test cases whose label is not public.
        patient: who was scanned; the case itself where this is empty.
        named: the patient's name in the download, where the same scan under two names was found to be one patient.
        domain: scanner, vendor or modality, empty where there is one only.
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
        """Who was scanned: the patient, or the case where there is no name."""
        return self.patient or self.case

    def sources(self) -> list[Source]:
        """Return the channels and, where there is one, the label."""
        return [*self.channels, *([self.label] if self.label else [])]

    def files(self) -> list[Path]:
        """Return the files of all sources, each once."""
        return list(dict.fromkeys(path for source in self.sources() for path in source.files()))


@dataclass(frozen=True)
class Found:
    """Everything that a converter found in a download folder, and everything that is wrong with it.

    Attributes:
        records: the cases.
        channel_names: as in dataset.json.
        labels: as in dataset.json: name -> value, or values for a region. Empty takes the values that occur, 0 to the
            highest, and calls them label_1, label_2, …
        label_values: value in the download -> value that is written; other values are a problem. Empty keeps the
            values, which must then be those of `labels`.
        regions_class_order: as in dataset.json.
        problems: what the mapping noticed: missing folders, wrong nesting, tables that lack a row.
        ignored: files that belong to the layout and are not converted.
        notes: what the user should know and that is no problem.
        name: name of the data set where the download itself tells it.
        strict: whether an image file below the folder that is neither used nor ignored is a problem.
    """

    records: tuple[Record, ...]
    channel_names: tuple[str, ...]
    labels: Mapping[str, int | tuple[int, ...]]
    label_values: Mapping[int, int] = field(default_factory=dict)
    regions_class_order: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    ignored: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    name: str = ""
    strict: bool = True

    def allowed_values(self) -> dict[int, int]:
        """Return value in the download -> value that is written; empty where any value is allowed."""
        if self.label_values:
            return dict(self.label_values)
        parts = (part if isinstance(part, tuple) else (part,) for part in self.labels.values())
        return {value: value for part in parts for value in part}
