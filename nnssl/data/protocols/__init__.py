"""Published protocols: which patients learn with labels, validate and test. Names and order only, one JSON file each.

A file `FAMILY.json` has `source` (who published it), `budgets` (the published label budgets), and either the lists
`train` (in the order in which a budget takes them), `validation` and `test`, or `rule`, for protocols that are
published without lists: `{"seed": 0, "validation": 10, "test": 20}` shuffles the sorted patients with that seed, takes
the test and the validation patients from its end, and the others learn in the shuffled order.

Where the published labelled lists of a file's budgets do not contain each other, `labelled` holds them, `{"4": [...],
"10": [...]}`: each budget is then a protocol of its own, in whose order its list comes first.

With `domains`, `{"labelled": ["A", "B"], "unlabelled": ["B"], "test": ["C"]}`, the patients come from the domains that
`cases` of dataset.json names: those of `labelled` fill the order that a budget takes, those of `unlabelled` learn
without labels, and every patient of a `test` domain that nobody learns from is a test patient.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.data.raw import RawCase, RawDataset
from nnssl.data.splits import LabelBudget
from nnssl.errors import DataError, UsageError
from nnssl.system.files import read_json

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Lists:
    """The patients of a protocol in one data set; `order` are those that may keep their labels, first come first."""

    train: tuple[str, ...]
    order: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """One protocol file; see the module's docstring."""

    family: str
    source: str
    budgets: tuple[str, ...]
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    rule: Mapping[str, int] = field(default_factory=dict)
    domains: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labelled: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """What `-protocol` takes for training: `acdc-7`, `mnms-2pct`."""
        return [f"{self.family}-{budget.replace('%', 'pct')}" for budget in self.budgets]

    def of_budget(self, name: str, budget: str) -> Protocol:
        """Return the protocol `name` of one budget: this one, but for the published labelled list of that budget."""
        first = tuple(self.labelled.get(budget, ()))
        if not first:
            return self
        return replace(self, family=name, train=(*first, *(patient for patient in self.train if patient not in first)))

    def lists(self, people: Mapping[str, str]) -> Lists:
        """Return the patients' parts.

        Args:
            people: patient -> domain of every patient with labels in the data set.

        Raises:
            DataError: patients or domains of the protocol are missing.
        """
        if not self.rule:
            missing = sorted({*self.train, *self.validation} - set(people))
            if missing:
                raise DataError(
                    f"the protocol {self.family} needs {len(missing)} patient(s) that the data set does not have",
                    where="-protocol",
                    why=", ".join(missing[:10]) + (" …" if len(missing) > 10 else ""),
                    run="convert the whole data set, or with nnssl_convert -protocol, or leave -protocol out",
                )
            return Lists(self.train, self._sources(self.train, people), self.validation, self.test)
        return self._by_rule(people)

    def _by_rule(self, people: Mapping[str, str]) -> Lists:
        names = sorted(people)
        shuffled = [names[i] for i in np.random.RandomState(self.rule["seed"]).permutation(len(names))]
        learned = {*self.domains.get("labelled", ()), *self.domains.get("unlabelled", ())}
        unseen = set(self.domains.get("test", ())) - learned
        absent = sorted((learned | unseen) - set(people.values()))
        if absent:
            raise DataError(
                f"the protocol {self.family} needs domains that the data set does not have",
                where="dataset.json: cases",
                why=f"missing: {', '.join(absent)}; there are: {', '.join(sorted(filter(None, people.values())))}",
            )
        known = [name for name in shuffled if not learned or people[name] in learned]
        tested = {name for name in shuffled if people[name] in unseen}
        may_test = [name for name in known if not self.domains.get("test") or people[name] in self.domains["test"]]
        count = self.rule.get("test", 0)
        tested |= set(may_test[len(may_test) - count :]) if count else set()
        left = self._sources([name for name in known if name not in tested], people)
        held_out = left[len(left) - self.rule.get("validation", 0) :] if self.rule.get("validation") else ()
        train = tuple(name for name in known if name not in tested and name not in held_out)
        if len(may_test) < count or not self._sources(train, people):
            raise DataError(
                f"the protocol {self.family} needs more patients than the data set has",
                where="-protocol",
                why=f"{len(people)} patients; the rule asks for {dict(self.rule)}",
            )
        test = tuple(name for name in shuffled if name in tested)
        return Lists(train, self._sources(train, people), tuple(held_out), test)

    def _sources(self, names: Iterable[str], people: Mapping[str, str]) -> tuple[str, ...]:
        wanted = self.domains.get("labelled")
        return tuple(name for name in names if not wanted or people[name] in wanted)


@dataclass(frozen=True)
class Case:
    """What a protocol needs to know of a case."""

    name: str
    patient: str
    domain: str = ""


def protocol_fold(
    protocol: Protocol, lists: Lists, labelled: Sequence[Case], unlabelled: Sequence[Case]
) -> dict[str, Any]:
    """Return the one fold of a protocol, as `splits_final.json` holds it.

    Its additional keys are `protocol`, and `test`: labelled cases that nothing may be learned from. Of the unlabelled
    scans those of the training patients take part; with a rule, those of its domains. Where the protocol has no
    validation patients `val` is `train`, which a label budget narrows to the labelled cases.
    """
    closed = {*lists.validation, *lists.test}
    learned = {*protocol.domains.get("labelled", ()), *protocol.domains.get("unlabelled", ())}
    more = [case for case in unlabelled if case.patient not in closed and (not learned or case.domain in learned)]
    train = _of(lists.train, labelled)
    return {
        "train": train,
        "val": _of(lists.validation, labelled) or train,
        "unlabelled": [case.name for case in more if protocol.rule or case.patient in lists.train],
        "labelled_order": list(lists.order),
        "test": _of(lists.test, labelled),
        "protocol": protocol.family,
    }


def _of(people: Sequence[str], cases: Sequence[Case]) -> list[str]:
    wanted = set(people)
    return sorted(case.name for case in cases if case.patient in wanted)


def protocol_splits(name: str, raw: RawDataset) -> list[dict[str, Any]]:
    """Return the folds of a protocol in a raw data set; test patients may stand in imagesTr, in imagesTs, or be absent.

    The lists that `nnssl_convert -protocol` wrote are taken as they are.

    Raises:
        UsageError: no such protocol.
        DataError: patients or domains are missing.
    """
    protocol, _ = find_protocol(name)
    written = raw.folder / "splits_final.json"
    if written.is_file() and is_of_protocol(folds := read_json(written), name):
        return list(folds)
    about = raw.dataset_json.get("cases", {})

    def known(cases: Iterable[RawCase]) -> list[Case]:
        entries = ((case, about.get(case.name, {})) for case in cases)
        return [Case(case.name, entry.get("named", case.patient), entry.get("domain", "")) for case, entry in entries]

    labelled = known(raw.labelled.values())
    lists = protocol.lists({case.patient: case.domain for case in labelled})
    return [protocol_fold(protocol, lists, labelled, known(raw.unlabelled.values()))]


def is_of_protocol(splits: Any, name: str) -> bool:  # noqa: ANN401 - whatever the file holds
    """Return whether fold 0 of a `splits_final.json` is that of a protocol."""
    first = splits[0] if isinstance(splits, list) and splits else None
    return isinstance(first, dict) and first.get("protocol") == find_protocol(name)[0].family


def find_protocol(name: str) -> tuple[Protocol, str | None]:
    """Return the protocol that `-protocol` names, and its label budget: `acdc-7` has the budget 7, `acdc` has none.

    Raises:
        UsageError: no such protocol; the message lists the names.
    """
    protocols = [read_protocol(path) for path in sorted(FOLDER.glob("*.json"))]
    for protocol in protocols:
        if name == protocol.family:
            return protocol, None
        if name in protocol.names:
            budget = protocol.budgets[protocol.names.index(name)]
            return protocol.of_budget(name, budget), budget
    known = [text for protocol in protocols for text in protocol.names]
    close = difflib.get_close_matches(name, known, n=1)
    raise UsageError(
        f"unknown protocol '{name}'",
        where=f"-protocol {name}",
        why=f"known protocols: {', '.join(known)}",
        run=f"-protocol {close[0]}" if close else "",
    )


def budget_of(name: str, labelled: str | int | None, fold: int | str) -> str:
    """Return the label budget of a protocol, for commands that also take `-labelled` and a fold.

    Raises:
        UsageError: no such protocol, it has no budget, or the other options contradict it.
    """
    protocol, budget = find_protocol(name)
    if budget is None:
        raise UsageError(
            f"the protocol '{name}' needs a label budget", where=f"-protocol {name}", run=" or ".join(protocol.names)
        )
    if labelled is not None and str(labelled) != budget:
        raise UsageError(f"-protocol {name} has the label budget {budget}", where=f"-labelled {labelled}")
    if fold != 0:
        raise UsageError("a protocol has one fold", where=f"-protocol {name}, fold {fold}", run="fold 0")
    return budget


def read_protocol(path: Path) -> Protocol:
    """Return the protocol of a file of this folder.

    Raises:
        DataError: a list repeats a patient, a patient is in two lists, or a budget or its labelled list is none.
    """
    content = read_json(path)
    lists = {key: tuple(content.get(key, ())) for key in ("train", "validation", "test")}
    people = [name for names in lists.values() for name in names]
    if len(people) != len(set(people)):
        raise DataError("a patient stands twice in a protocol", where=path)
    for budget in content["budgets"]:
        LabelBudget.parse(budget)
    rest: dict[str, Any] = {key: content[key] for key in ("rule", "domains", "labelled") if key in content}
    for budget, names in rest.get("labelled", {}).items():
        if len(set(names)) != int(budget) or not set(names) <= set(lists["train"]):
            raise DataError(f"the labelled list of the budget {budget} is not {budget} training patients", where=path)
    return Protocol(
        path.stem,
        content["source"],
        tuple(content["budgets"]),
        lists["train"],
        lists["validation"],
        lists["test"],
        **rest,
    )
