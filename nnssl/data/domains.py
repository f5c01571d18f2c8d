"""The settings of domains: adaptation to an unlabelled target domain, and generalisation to an unseen domain.

A domain is a scanner, vendor or modality; `cases` of dataset.json names that of each case.

- UMDA, `umda:SOURCE->TARGET`: the source domain has labels. The target domain trains without labels and tests.
- Semi-MDG, `mdg:TARGET`: every other domain is a source, of which a label budget keeps a part of the patients. No file
  of the unseen target domain is opened.

A setting has one fold, in a splits file of its own, and plans of its own. Validation patients are source patients.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnssl.data.protocols import budget_of, find_protocol, protocol_splits
from nnssl.data.raw import RawDataset, listed, patient_of
from nnssl.data.splits import budget_with_pick, make_splits
from nnssl.errors import DataError, UsageError, unknown_name
from nnssl.names import CASES_KEY, DATASET_JSON, DOMAINS_KEY, LABELLED_ORDER, TAG_SEPARATOR, UNLABELLED_KEY

UMDA, MDG = "umda", "mdg"
FORMS = {UMDA: "umda:SOURCE:TARGET", MDG: "mdg:TARGET"}
BETWEEN_DOMAINS = ("->", "→", ":", ",")
SAFE_NAME = re.compile(r"[A-Za-z0-9.+]+(_[A-Za-z0-9.+]+)*")
Fold = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A setting of domains.

    Attributes:
        kind: `umda` or `mdg`.
        source: the labelled domain of `umda`; empty for `mdg`, whose sources are all domains but the target.
        target: the unlabelled domain of `umda`, the unseen domain of `mdg`.
        protocol: name of the published protocol whose lists divide the patients; empty without one.
    """

    kind: str
    source: str
    target: str
    protocol: str = ""

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Return the setting that a user names: `umda:A->B`, `umda:A:B`, `umda:A,B` or `mdg:A`.

        Raises:
            UsageError: the text is no setting.
        """
        kind, _, rest = (part.strip() for part in text.partition(":"))
        if kind.lower() not in FORMS:
            raise unknown_name("setting", text, FORMS.values(), option="-setting", otherwise=_otherwise(kind.lower()))
        wanted = 2 if kind.lower() == UMDA else 1
        between = next((mark for mark in BETWEEN_DOMAINS if mark in rest), None)
        names = [part.strip() for part in rest.split(between)] if between and wanted == 2 else [rest]
        if len(names) != wanted or not all(names):
            eaten = kind.lower() == UMDA and rest.endswith("-")
            raise UsageError(
                f"'{text}' is not a setting",
                where=f"-setting {text}",
                why="the shell took > for a redirection, and may have written a file with the name of the target"
                if eaten
                else f"the form is {FORMS[kind.lower()]}",
                run=f"-setting umda:{rest[:-1]}:TARGET, or with quotes: 'umda:{rest[:-1]}->TARGET'"
                if eaten
                else f"-setting {FORMS[kind.lower()]}",
            )
        if wanted == 2 and names[0] == names[1]:
            raise UsageError("source and target are the same domain", where=f"-setting {text}")
        return cls(kind.lower(), names[0] if wanted == 2 else "", names[-1])

    @classmethod
    def find(cls, text: str) -> Setting | None:
        """Return the setting in the record of a run or plan: the text of a setting or protocol; None where empty."""
        if not text:
            return None
        return cls.parse(text) if ":" in text else of_protocol(text)

    def __str__(self) -> str:
        if self.protocol:
            return self.protocol
        if self.kind == MDG:
            return f"{MDG}:{self.target}"
        between = "->" if set(self.source + self.target) & {":", ","} else ":"
        return f"{UMDA}:{self.source}{between}{self.target}"

    @property
    def option(self) -> str:
        """The option that names this setting on a command line."""
        return "-protocol" if self.protocol else "-setting"

    @property
    def words(self) -> str:
        """The setting as a word of a command line, in quotes where the shell needs them."""
        return shlex.quote(str(self))

    @property
    def tag(self) -> str:
        """The part of the plans name that stands for the setting: `@umda-A-B`, `@mdg-D` or `@mnms_to_a-5`.

        A hash ends the tag of domains whose names a folder's name cannot hold.
        """
        if self.protocol:
            return f"{TAG_SEPARATOR}{find_protocol(self.protocol)[0].family}"
        names = [name for name in (self.source, self.target) if name]
        text = "-".join([self.kind, *names])
        if all(map(SAFE_NAME.fullmatch, names)):
            return f"{TAG_SEPARATOR}{text}"
        mended = re.sub(r"[^A-Za-z0-9.+]+", "-", text)[:40]
        return f"{TAG_SEPARATOR}{mended}-{hashlib.sha256(str(names).encode()).hexdigest()[:6]}"


def _otherwise(kind: str) -> str:
    if kind == "ssmis":
        return "leave -setting out: without domains, -labelled alone is this setting"
    return "-setting umda:SOURCE:TARGET or -setting mdg:TARGET, with domains of dataset.json"


def setting_tag(text: str) -> str:
    """Return the tag of a setting in the record of a run or plan; empty without a setting."""
    found = Setting.find(text)
    return found.tag if found else ""


def of_protocol(name: str) -> Setting | None:
    """Return the setting of a published protocol, None where the protocol does not choose by domain.

    Raises:
        UsageError: no such protocol.
    """
    protocol, budget = find_protocol(name)
    if not protocol.domains or budget is None:
        return None
    chosen = protocol.domains
    full = protocol.family if budget in protocol.labelled else protocol.name_of(budget)
    if chosen.get("unlabelled"):
        return Setting(UMDA, "+".join(chosen["labelled"]), "+".join(chosen["test"]), full)
    return Setting(MDG, "", "+".join(chosen["test"]), full)


def choose(
    setting: str | Setting | None, protocol: str | None, labelled: str | int | None, fold: int | str, pick: int = 0
) -> tuple[Setting | None, str | None]:
    """Return the setting that the options of a command name, None without one, and the label budget with its pick.

    Raises:
        UsageError: an option is wrong, or options contradict each other.
    """
    if setting and protocol:
        raise UsageError(
            "-setting and -protocol exclude each other",
            where=f"-setting {setting} -protocol {protocol}",
            why="a protocol that chooses by domain brings its setting",
            run="leave one of them out",
        )
    if protocol:
        return of_protocol(protocol), budget_with_pick(budget_of(protocol, labelled, fold), pick)
    budget = budget_with_pick(labelled, pick)
    if not setting:
        return None, budget
    found = setting if isinstance(setting, Setting) else Setting.parse(setting)
    if fold != 0:
        raise UsageError(
            "a setting of domains has one fold", where=f"{found.option} {found}, fold {fold}", run="fold 0"
        )
    return found, budget


def domains_of(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Return case -> domain for the cases of dataset.json that have one."""
    about = dataset_json.get(CASES_KEY, {})
    return {case: str(entry["domain"]) for case, entry in about.items() if entry.get("domain")}


def setting_fold(setting: Setting, raw: RawDataset) -> Fold:
    """Return the fold of a setting, as its splits file holds it.

    A source domain with two patients or more keeps a fifth of them, those of fold 0, for validation. In UMDA, the
    target's patients in `imagesTs` test; without any, a fifth of its labelled patients does. Scans of `imagesUn` take
    part if their domain is a source, or the target of UMDA.

    Args:
        setting: the setting.
        raw: the data set; for `mdg` the files of the target domain need not exist.

    Raises:
        UsageError: the data set has no such domain.
        DataError: no case has a domain, a patient is in two domains, or a domain has too few scans.
    """
    if setting.protocol:
        (fold,) = protocol_splits(setting.protocol, raw)
        return fold
    domains = domains_of(raw.dataset_json)
    _check_domains(setting, raw, domains)
    sources = [setting.source] if setting.kind == UMDA else sorted(set(domains.values()) - {setting.target})
    patients = raw.patients()
    parts = [_first_fold(_in_domain(raw.labelled, domains, [source]), patients) for source in sources]
    train = sorted(case for part in parts for case in part["train"])
    if not train:
        raise DataError(
            "the source has no labelled case",
            where=f"{setting.option} {setting}",
            why=f"labelled cases of {', '.join(sources)}: 0; somebody must have drawn labels in a source domain",
        )
    held_out = sorted(case for part in parts for case in part["val"])
    hidden, tested = _target_cases(setting, raw, domains, patients)
    closed = {patients[case] for case in held_out} | {patients[case] for case in tested if case in patients}
    learned = [*sources, *([setting.target] if setting.kind == UMDA else [])]
    scans = [case for case in _in_domain(raw.unlabelled, domains, learned) if patients[case] not in closed]
    if setting.kind == UMDA and not any(domains[case] == setting.target for case in (*hidden, *scans)):
        raise DataError(
            f"the target domain {setting.target} has no scan to learn from",
            where=f"{setting.option} {setting}",
            why=f"its only patient ({listed(tested)}) is needed for the test; the others of the domain are in no folder"
            if tested
            else "adaptation needs scans of the target in imagesTr or imagesUn",
            run="add scans of the target to imagesUn, or put its test scans into imagesTs",
        )
    return {
        "train": train,
        "val": held_out or train,
        UNLABELLED_KEY: [*hidden, *scans],
        LABELLED_ORDER: [patient for part in parts for patient in part[LABELLED_ORDER]],
        "test": tested,
        DOMAINS_KEY: {case: domains[case] for case in train},
        "setting": str(setting),
    }


def _check_domains(setting: Setting, raw: RawDataset, domains: Mapping[str, str]) -> None:
    path = raw.folder / DATASET_JSON
    if not domains:
        raise DataError(
            "the data set has no domains",
            where=f"{path}: {CASES_KEY}",
            why=f"{setting.option} {setting} chooses cases by their domain",
            run=f'name the domain of each case: "{CASES_KEY}": {{"CASE": {{"patient": "p1", "domain": "A"}}, …}}',
        )
    known = sorted(set(domains.values()))
    for name in filter(None, (setting.source, setting.target)):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"the data set has no domain '{name}'",
                where=f"{setting.option} {setting}",
                why=f"domains in {path.name}: {', '.join(known)}",
                run=f"{setting.option} {str(setting).replace(name, close[0])}" if close else "",
            )
    if len(known) == 1:
        raise DataError("the data set has one domain", where=f"{path}: {CASES_KEY}", why="a setting needs two or more")
    places: dict[str, set[str]] = {}
    for case, domain in domains.items():
        places.setdefault(patient_of(case, raw.dataset_json), set()).add(domain)
    both = sorted(patient for patient, found in places.items() if len(found) > 1)
    if both:
        raise DataError(
            f"{len(both)} patient(s) are in two domains",
            where=f"{path}: {CASES_KEY}",
            why=f"{listed(both)}: such patients would be learned from and tested",
            run="give each patient one domain",
        )


def _in_domain(cases: Iterable[str], domains: Mapping[str, str], wanted: Sequence[str]) -> list[str]:
    return sorted(case for case in cases if domains.get(case) in wanted)


def _first_fold(cases: Sequence[str], patients: Mapping[str, str]) -> Fold:
    """Return nnssl's fold 0 of some cases; the cases of a single patient train and do not validate."""
    if not cases:
        return {"train": [], "val": [], LABELLED_ORDER: []}
    first = make_splits(cases, [], patients)[0]
    return {**first, "val": []} if first["train"] == first["val"] else first


def _target_cases(
    setting: Setting, raw: RawDataset, domains: Mapping[str, str], patients: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return the target's labelled cases that train without their labels, and its test cases."""
    if setting.kind == MDG:
        return [], _in_domain(domains, domains, [setting.target])
    tested = _in_domain(raw.test, domains, [setting.target])
    cases = _in_domain(raw.labelled, domains, [setting.target])
    if tested:
        return cases, tested
    parts = _first_fold(cases, patients)
    return (parts["train"], parts["val"]) if parts["val"] else ([], cases)


def seen_part(raw: RawDataset, fold: Mapping[str, Any]) -> RawDataset:
    """Return the data set without the cases that a setting does not use; nothing reads what is left out.

    Test cases stay if their domain is one of those that the setting learns from.
    """
    wanted = {*fold["train"], *fold["val"], *fold[UNLABELLED_KEY]}
    domains = domains_of(raw.dataset_json)
    learned = {domains.get(case) for case in wanted} - {None}
    return dataclasses.replace(
        raw,
        labelled={name: case for name, case in raw.labelled.items() if name in wanted},
        unlabelled={name: case for name, case in raw.unlabelled.items() if name in wanted},
        test={name: case for name, case in raw.test.items() if domains.get(name) in learned},
        whole=False,
    )


def without_domain(raw: RawDataset) -> list[str]:
    """Return one warning where labelled or unlabelled cases have no domain, so that no setting uses them."""
    domains = domains_of(raw.dataset_json)
    lost = [case for case in (*raw.labelled, *raw.unlabelled) if case not in domains]
    text = f"{len(lost)} scan(s) have no domain in dataset.json, so the setting leaves them out: {listed(lost)}"
    return [text] if lost else []


def domain_probabilities(cases: Sequence[str], domains: Mapping[str, str]) -> list[float]:
    """Return with which probability a batch draws each case, so that all domains are drawn equally often.

    Args:
        cases: names of the cases, at least one.
        domains: case -> domain; cases without one share a domain.

    Returns:
        One number a case, with sum 1; the cases of a domain have equal ones.
    """
    names = [domains.get(case, "") for case in cases]
    return [1 / (len(set(names)) * names.count(name)) for name in names]
