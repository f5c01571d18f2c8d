"""The check of scans without reading unchanged files again: what was found is kept in a `FactStore`.

A scan has one fact for its images and one for images and label. Who may not read a label is given the first one, so
that what an earlier call learned from a hidden label never plays a part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnssl.data.scans import ChannelIntensity, Examined, Expected, ScanFacts, ScanTask, examine_parts, sources_of
from nnssl.names import FILE_ENDING_KEY
from nnssl.system.fact_store import Fact, FactStore, states_of
from nnssl.system.files import content_hash, settings_hash
from nnssl.system.workers import run_parallel
from nnssl.version import __version__

# The voxels of these formats can lie in a second file, whose changes the first one does not show.
FORMATS_OF_TWO_FILES = (".hdr", ".img", ".nhdr", ".mhd")
PACKAGES = ("nnunetv2", "SimpleITK", "nibabel")


@dataclass(frozen=True)
class _Todo:
    """A scan whose files changed, or that nobody has read; `known` is what was found in files of the same names."""

    task: ScanTask
    known: Fact | None


@dataclass(frozen=True)
class _Seen:
    """What was found in a scan, and the facts to keep: by whether the label was read."""

    outcome: Examined
    facts: dict[bool, Fact]


def examine_scans(
    tasks: Mapping[str, ScanTask], expected: Expected, num_processes: int, store: FactStore | None = None
) -> dict[str, Examined]:
    """Return what `examine` finds in every scan; files that are unchanged since an earlier call are not opened.

    Files with another time or inode and the same size are hashed. Where their content is the same, they are not
    decoded. Findings about files that could not be read are not kept.

    Args:
        tasks: name -> scan.
        expected: what every scan must look like.
        num_processes: worker processes; 1 works in this process.
        store: what earlier calls found; the caller saves the last facts. None reads all files.
    """
    store = store or FactStore(None)
    settings = {read: _settings(expected, read) for read in (False, True)}
    found: dict[str, Examined] = {}
    todo: dict[str, _Todo] = {}
    for name, task in tasks.items():
        fact = store.find(_key(name, task.read_label), settings[task.read_label])
        outcome = _outcome_of(fact) if fact is not None and fact.holds_for(states_of(sources_of(task))) else None
        if outcome is None:
            todo[name] = _Todo(task, fact)
        else:
            found[name] = outcome

    def keep(name: str, seen: _Seen) -> None:
        for read_label, fact in seen.facts.items():
            store.put(_key(name, read_label), fact)

    examine_again = partial(_examine_again, expected=expected, settings=settings)
    seen = run_parallel(examine_again, todo, num_processes, "checking the scans", keep)
    return {name: found[name] if name in found else seen[name].outcome for name in tasks}


def known_reader(
    find: Callable[[], Any], store: FactStore | None, dataset_json: Mapping[str, Any], example: str
) -> str:
    """Return the name of the reader class that nnU-Net takes for an example file, which is opened once only.

    Args:
        find: returns the class.
        store: what earlier calls found.
        dataset_json: content of dataset.json, whose entries about the files count.
        example: path of the file.
    """
    entries = [dataset_json.get(key) for key in (FILE_ENDING_KEY, "overwrite_image_reader_writer")]
    settings = settings_hash([entries, _versions()])
    noted = states_of([Path(example)])
    store = store or FactStore(None)
    fact = store.find(f"reader {example}", settings)
    if fact is not None and fact.holds_for(noted):
        return str(fact.value)
    name = str(find().__name__)
    if noted is not None:
        store.put(f"reader {example}", Fact(settings, noted, name))
    return name


def _versions() -> list[str]:
    """Return the versions of what reads and checks files; the facts of other versions do not count."""
    return [__version__, *map(version, PACKAGES)]


def _settings(expected: Expected, read_label: bool) -> str:
    labels = list(expected.labels) if read_label else []
    return settings_hash([expected.reader.__name__, expected.channels, labels, expected.file_ending, _versions()])


def _key(name: str, read_label: bool) -> str:
    return f"{name} {'with label' if read_label else 'alone'}"


def _examine_again(todo: _Todo, expected: Expected, settings: Mapping[bool, str]) -> _Seen:
    """Read a scan again unless its content is the one that is known."""
    task = todo.task
    start = Fact(settings[task.read_label], states_of(sources_of(task)) or (), None)
    known = _outcome_of(todo.known) if todo.known is not None and _may_be_same(todo.known, start) else None
    parts: tuple[Examined, ...]
    values: dict[bool, Any]
    if known is not None and known.facts and content_hash(*sources_of(task)) == known.facts.source_hash:
        parts, values = (known,), {task.read_label: todo.known and todo.known.value}
    else:
        parts = examine_parts(task, expected)
        values = {bool(number): dataclasses.asdict(part) for number, part in enumerate(parts)}
    images = sources_of(dataclasses.replace(task, read_label=False))
    files = {False: states_of(images) or (), True: start.files}
    if not start.files or states_of(sources_of(task)) != start.files or not _can_keep(parts, expected):
        return _Seen(parts[-1], {})
    facts = {label: Fact(settings[label], files[label], value, start.noted_ns) for label, value in values.items()}
    return _Seen(parts[-1], facts)


def _can_keep(parts: Sequence[Examined], expected: Expected) -> bool:
    """Return whether the findings hold as long as the files are unchanged."""
    read = all(part.facts is not None and not part.unreadable for part in parts)
    return read and not expected.file_ending.lower().endswith(FORMATS_OF_TWO_FILES)


def _may_be_same(known: Fact, now: Fact) -> bool:
    """Return whether files have the names and sizes of known ones; messages with paths hold for the same paths only."""
    pairs = [[(Path(file.path).name, file.size) for file in fact.files] for fact in (known, now)]
    paths = [[file.path for file in fact.files] for fact in (known, now)]
    outcome = _outcome_of(known)
    silent = outcome is not None and not (outcome.problems or outcome.warnings)
    return pairs[0] == pairs[1] and (silent or paths[0] == paths[1])


def _outcome_of(fact: Fact) -> Examined | None:
    """Return the findings of a fact, None where the fact is damaged."""
    try:
        value = dict(fact.value)
        facts = dict(value.pop("facts"))
        channels = tuple(ChannelIntensity(**channel) for channel in facts.pop("intensity"))
        shape, spacing_mm = tuple(facts.pop("shape")), tuple(facts.pop("spacing_mm"))
        return Examined(ScanFacts(**facts, shape=shape, spacing_mm=spacing_mm, intensity=channels), **value)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
