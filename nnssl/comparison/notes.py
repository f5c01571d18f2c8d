"""What a reader must know about a comparison: other labels, splits, lengths or references, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nnssl.comparison.pairing import Pairs
from nnssl.comparison.sources import Compared
from nnssl.registry import METHODS
from nnssl.training.record import RunRecord

LISTED = 5
DATA = {
    "labelled": "was trained on other labelled cases",
    "validation": "was validated on other cases",
    "dataset_json": "has another dataset.json",
    "splits": "has other splits",
}
CONTROL = "unlabelled_weight"


def notes_on_patients(cases: Iterable[str], patients: Mapping[str, str]) -> list[str]:
    """Say where cases stand for patients because no dataset.json names their patients.

    Args:
        cases: of the comparison.
        patients: case -> patient, for the named ones.
    """
    listed = sorted(set(cases))
    unnamed = [case for case in listed if case not in patients]
    if not unnamed:
        return []
    count = "no dataset.json names patients" if len(unnamed) == len(listed) else "dataset.json names no patient of some"
    return [f"{count}: {_some(unnamed)} count as one patient each"]


def notes_on_cases(pairs: Pairs, method: str, baseline: str) -> list[str]:
    """Name the cases that one side lacks and those without a value."""
    parts = (
        (pairs.only_baseline, f"{method} lacks"),
        (pairs.only_method, f"{baseline}, the baseline, lacks"),
    )
    lines = [f"{who} {_some(cases)}: left out beside {method}" for cases, who in parts if cases]
    if pairs.without_value:
        lines.append(f"no structure has a value in {_some(pairs.without_value)}: left out beside {method}")
    if pairs.dropped:
        lines.append(f"{method}: {pairs.dropped} structure(s) in cases have a value on one side only and are left out")
    if pairs.half_empty:
        lines.append(
            f"{method}: {pairs.half_empty} structure(s) in cases are not in the reference, and only some runs drew "
            "them; an empty mask counts as perfect there"
        )
    return lines


def notes_on_runs(method: Compared, baseline: Compared, *, same_labels: bool = True) -> list[str]:
    """Say where a method's runs had other data or another length than the baseline, or are not finished.

    Args:
        method: to look at.
        baseline: to compare with; the baseline itself for its own state.
        same_labels: False for a run that has all labels on purpose.
    """
    lines = [
        f"{method.name} is not finished: {record.state} at iteration {record.iteration} of "
        f"{record.settings.num_iterations}"
        for record in _records(method)
        if record.state != "done"
    ]
    lines += [
        f"{method.name}: no unlabelled scan counted in fold {record.fold}; that run is supervised"
        for record in _records(method)
        if record.state == "done" and record.unlabelled_from is None and _needs_unlabelled(record)
    ]
    lines += [
        f"{method.name} started from trained weights, whose iterations do not count here: {record.settings.start_from}"
        for record in _records(method)
        if record.settings.start_from
    ]
    pairs = [
        (ours, theirs)
        for source in method.sources
        for other in baseline.sources
        for fold, ours in source.records.items()
        if (theirs := other.records.get(fold)) is not None
    ]
    same = [(ours, theirs) for ours, theirs in pairs if ours.settings.labelled == theirs.settings.labelled]
    pairs = same or pairs  # of several picks of the labelled patients, each is compared with itself
    for name, words in DATA.items():
        asked = same_labels or name == "validation"
        if asked and any(_differ(getattr(ours.data, name), getattr(theirs.data, name)) for ours, theirs in pairs):
            lines.append(f"{method.name} {words} than {baseline.name}")
    lengths = [_lengths(each) for each in (method, baseline)]
    if all(lengths) and lengths[0] != lengths[1]:
        lines.append(
            f"unequal iterations: {method.name} {_numbers(lengths[0])}, {baseline.name} {_numbers(lengths[1])}"
        )
    return list(dict.fromkeys(lines))


def notes_on_references(method: Compared, baseline: Compared) -> list[str]:
    """Say in which common cases the references differ: their structures have other sizes (`n_ref`)."""
    ours, theirs = method.runs[0].cases, baseline.runs[0].cases
    other = []
    for case in sorted(ours.keys() & theirs.keys()):
        sizes, sizes_there = (
            {label: scores["n_ref"] for label, scores in side[case].items() if "n_ref" in scores}
            for side in (ours, theirs)
        )
        if any(sizes[label] != sizes_there[label] for label in sizes.keys() & sizes_there.keys()):
            other.append(case)
    if not other:
        return []
    return [f"{method.name} was scored against other references than {baseline.name} in {_some(other)}"]


def find_control(method: Compared, others: Sequence[Compared]) -> Compared | None:
    """Return the regime control of a method: its trainer and settings with `unlabelled_weight` 0; None without one."""
    if method.record is None or _weight(method.record) == 0:
        return None
    wanted = _settings(method.record)
    for other in others:
        record = other.record
        if record and record.trainer == method.record.trainer and _weight(record) == 0 and _settings(record) == wanted:
            return other
    return None


def _needs_unlabelled(record: RunRecord) -> bool:
    method = METHODS.get(record.trainer)
    return method is not None and "unlabelled" in method.needs


def _weight(record: RunRecord) -> object:
    return record.settings.config.get(CONTROL)


def _settings(record: RunRecord) -> tuple[int, dict[str, object]]:
    """Return length and settings without the weight of the unlabelled losses."""
    config: dict[str, object] = {name: value for name, value in record.settings.config.items() if name != CONTROL}
    return record.settings.num_iterations, config


def _records(method: Compared) -> list[RunRecord]:
    return [record for source in method.sources for record in source.records.values()]


def _lengths(method: Compared) -> list[int]:
    return sorted({record.settings.num_iterations for record in _records(method)})


def _differ(ours: str, theirs: str) -> bool:
    return bool(ours and theirs) and ours != theirs


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _some(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return f"{len(names)} case(s) ({', '.join(names[:LISTED])}{f' and {more} more' if more > 0 else ''})"
