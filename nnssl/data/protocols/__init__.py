"""Published protocols: which patients train, validate and test. Each JSON file holds names and their order only.

A file `FAMILY.json` has the keys `source` (who published the protocol) and `budgets` (the published label budgets), and
one of two descriptions of the patients:

- The lists `train`, `validation` and `test`. A label budget takes patients in the order of `train`.
- A `rule`, for protocols that are published without lists. `{"seed": 0, "validation": 10, "test": 20}` shuffles the
  sorted patients with that seed. The last 20 patients of the shuffled order test, the 10 before these validate, and the
  others train in this order.

Optional keys:

- `labelled`, `{"4": [...], "10": [...]}`, where the published lists of labelled patients do not contain each other.
  Each budget is then a protocol of its own, whose order begins with its own list.
- `short_names`, `{"5": "mnms-to-a-2"}`: another name of the protocol with a budget.
- `domains`, `{"labelled": ["A", "B"], "unlabelled": ["B"], "test": ["C"]}`. `cases` of dataset.json names the domain of
  each patient. A label budget takes patients of the `labelled` domains; patients of the `unlabelled` domains train
  without labels; all patients of a `test` domain from which no patient trains are test patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.data.raw import RawCase, RawDataset
from nnssl.data.splits import LabelBudget
from nnssl.errors import DataError, UsageError, unknown_name
from nnssl.names import CASES_KEY, LABELLED_ORDER, SPLITS_JSON, UNLABELLED_KEY
from nnssl.system.files import read_json

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Lists:
    """The patients of a protocol in one data set; `order` holds the patients that may keep their labels, in order."""

    train: tuple[str, ...]
    order: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """One protocol file; the docstring of the module explains the keys."""

    family: str
    source: str
    budgets: tuple[str, ...]
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    rule: Mapping[str, int] = field(default_factory=dict)
    domains: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labelled: Mapping[str, Sequence[str]] = field(default_factory=dict)
    short_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The values of `-protocol` for training: `acdc-7`, `mnms-2pct`."""
        return list(map(self.name_of, self.budgets))

    def name_of(self, budget: str) -> str:
        """Return the value of `-protocol` for one budget."""
        return f"{self.family}-{budget.replace('%', 'pct')}"

    def of_budget(self, name: str, budget: str) -> Protocol:
        """Return the protocol `name` of one budget: this protocol, with the labelled list of the budget first."""
        first = tuple(self.labelled.get(budget, ()))
        if not first:
            return self
        return replace(self, family=name, train=(*first, *(patient for patient in self.train if patient not in first)))

    def lists(self, people: Mapping[str, str]) -> Lists:
        """Return which patients train, validate and test.

        Args:
            people: patient -> domain, for every patient of the data set that has labels.

        Raises:
            DataError: the data set lacks patients or domains of the protocol.
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
            there = sorted(domain for domain in people.values() if domain)
            raise DataError(
                f"the protocol {self.family} needs domains that the data set does not have",
                where="dataset.json: cases",
                why=f"missing: {', '.join(absent)}; the data set has: {', '.join(dict.fromkeys(there))}",
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
class ProtocolCase:
    """A case as a protocol sees it."""

    name: str
    patient: str
    domain: str = ""


def protocol_fold(
    protocol: Protocol, lists: Lists, labelled: Sequence[ProtocolCase], unlabelled: Sequence[ProtocolCase]
) -> dict[str, Any]:
    """Return the only fold of a protocol, as `splits_final.json` holds it.

    The fold has two more keys: `protocol`, and `test` with the labelled cases that no training may use. Unlabelled
    scans of the training patients take part; with a rule, unlabelled scans of the rule's domains. Where the protocol
    has no validation patients, `val` is `train`, which a label budget narrows to the labelled cases.
    """
    closed = {*lists.validation, *lists.test}
    learned = {*protocol.domains.get("labelled", ()), *protocol.domains.get("unlabelled", ())}
    more = [case for case in unlabelled if case.patient not in closed and (not learned or case.domain in learned)]
    train = _cases_of(lists.train, labelled)
    return {
        "train": train,
        "val": _cases_of(lists.validation, labelled) or train,
        UNLABELLED_KEY: [case.name for case in more if protocol.rule or case.patient in lists.train],
        LABELLED_ORDER: list(lists.order),
        "test": _cases_of(lists.test, labelled),
        "protocol": protocol.family,
    }


def _cases_of(people: Sequence[str], cases: Sequence[ProtocolCase]) -> list[str]:
    wanted = set(people)
    return sorted(case.name for case in cases if case.patient in wanted)


def protocol_splits(name: str, raw: RawDataset) -> list[dict[str, Any]]:
    """Return the folds of a protocol in a raw data set.

    Test patients may be in imagesTr, in imagesTs, or missing. The function takes lists that `nnssl_convert -protocol`
    wrote as they are.

    Raises:
        UsageError: no such protocol.
        DataError: the data set lacks patients or domains of the protocol.
    """
    protocol, _ = find_protocol(name)
    written = raw.folder / SPLITS_JSON
    if written.is_file() and is_of_protocol(folds := read_json(written), name):
        return list(folds)
    about = raw.dataset_json.get(CASES_KEY, {})

    def known(cases: Iterable[RawCase]) -> list[ProtocolCase]:
        entries = ((case, about.get(case.name, {})) for case in cases)
        return [
            ProtocolCase(case.name, entry.get("named", case.patient), entry.get("domain", ""))
            for case, entry in entries
        ]

    labelled = known(raw.labelled.values())
    lists = protocol.lists({case.patient: case.domain for case in labelled})
    return [protocol_fold(protocol, lists, labelled, known(raw.unlabelled.values()))]


def is_of_protocol(splits: Any, name: str) -> bool:  # noqa: ANN401 - whatever the file holds
    """Return whether the content of a `splits_final.json` follows a protocol."""
    first = splits[0] if isinstance(splits, list) and splits else None
    return isinstance(first, dict) and first.get("protocol") == find_protocol(name)[0].family


def find_protocol(name: str) -> tuple[Protocol, str | None]:
    """Return the protocol that `-protocol` names, and its label budget: `acdc-7` has the budget 7, `acdc` has none.

    Raises:
        UsageError: no such protocol; the message lists the names.
    """
    families = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
    protocols = list(map(read_protocol, families.values()))
    short = {text: each.name_of(budget) for each in protocols for budget, text in each.short_names.items()}
    name = short.get(name, name)
    family, _, _ = name.rpartition("-")  # no name of a budget holds a dash
    if name in families:
        return read_protocol(families[name]), None
    if family in families:
        protocol = read_protocol(families[family])
        if name in protocol.names:
            budget = protocol.budgets[protocol.names.index(name)]
            return protocol.of_budget(name, budget), budget
    known = [*(text for each in protocols for text in each.names), *short]
    raise unknown_name("protocol", name, known, option="-protocol")


def budget_of(name: str, labelled: str | int | None, fold: int | str) -> str:
    """Return the label budget of a protocol, for commands that also take `-labelled` and a fold.

    Raises:
        UsageError: no such protocol, a protocol without a budget, or other options contradict the protocol.
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
        DataError: a list repeats a patient, a patient is in two lists, or a labelled list does not fit its budget.
        UsageError: a budget is not a label budget.
    """
    content = read_json(path)
    lists = {key: tuple(content.get(key, ())) for key in ("train", "validation", "test")}
    people = [name for names in lists.values() for name in names]
    if len(people) != len(set(people)):
        raise DataError("a protocol names a patient twice", where=path)
    for budget in content["budgets"]:
        LabelBudget.parse(budget)
    rest: dict[str, Any] = {
        key: content[key] for key in ("rule", "domains", "labelled", "short_names") if key in content
    }
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
