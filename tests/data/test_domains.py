from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from nnssl.data.domains import (
    Setting,
    choose,
    domain_probabilities,
    domains_of,
    of_protocol,
    seen_part,
    setting_fold,
    setting_tag,
    without_domain,
)
from nnssl.data.protocols import find_protocol
from nnssl.data.raw import RawCase, RawDataset
from nnssl.data.splits import LabelBudget, fold_cases
from nnssl.errors import DataError, UsageError


def raw_of(
    labelled: str, unlabelled: str = "", test: str = "", gone: str = "", domains: dict[str, str] | None = None
) -> RawDataset:
    """Return a data set without files; a case `a3x` is scan x of the patient a3, who is in the domain A."""

    def cases(names: str) -> dict[str, RawCase]:
        return {name: RawCase(name, (Path(name),), None, name[:2]) for name in sorted(names.split())}

    parts = [cases(names) for names in (labelled, unlabelled, test)]
    about = {
        name: {"patient": name[:2], "domain": name[0].upper()}
        for name in " ".join((labelled, unlabelled, test, gone)).split()
    }
    for name, domain in (domains or {}).items():
        about[name]["domain"] = domain
    return RawDataset("Dataset001_X", Path("raw"), {"cases": about, "labels": {}, "file_ending": ".nii.gz"}, *parts)


OTHERS = ("a", "b", "d")  # the domains of the test of generalisation, without the unseen one
FOUR = " ".join(f"{domain}{patient}{scan}" for domain in "abc" for patient in range(1, 7) for scan in "xy")


@pytest.mark.parametrize("text", ["umda:A->B", "umda:A:B", "umda:A,B", "UMDA: A -> B ", "umda:A→B"])
def test_spellings_of_adaptation(text: str) -> None:
    setting = Setting.parse(text)
    assert setting == Setting("umda", "A", "B")
    assert (str(setting), setting.tag, setting.option) == ("umda:A:B", "@umda-A-B", "-setting")
    assert Setting.find(str(setting)) == setting


def test_spellings_of_generalisation() -> None:
    setting = Setting.parse("mdg:site_1")
    assert (setting, setting.tag, str(setting)) == (Setting("mdg", "", "site_1"), "@mdg-site_1", "mdg:site_1")
    assert Setting.find("") is None
    assert setting_tag("") == ""
    assert setting_tag("mdg:D") == "@mdg-D"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("umda:A-", ("took > for a redirection", "umda:A:TARGET")),
        ("umda:A", ("is not a setting", "umda:SOURCE:TARGET")),
        ("umda:A:B:C", ("is not a setting",)),
        ("umda::B", ("is not a setting",)),
        ("umda:A:A", ("same domain",)),
        ("mdg:", ("is not a setting", "mdg:TARGET")),
        ("mdga:B", ("unknown setting", "mdg:TARGET")),
        ("ssmis", ("unknown setting", "leave -setting out")),
        ("", ("unknown setting",)),
    ],
)
def test_what_is_no_setting(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        Setting.parse(text)
    assert all(word in str(caught.value) for word in words)


def test_names_with_spaces_are_quoted_on_a_command_line() -> None:
    setting = Setting.parse("umda:Site 1->Site 2")
    assert setting.words == "'umda:Site 1:Site 2'"
    assert Setting.find(str(setting)) == setting
    assert Setting.parse("mdg:D").words == "mdg:D"
    for text in ("umda:1.5:T->3:T", "mdg:1,5 T"):
        assert str(Setting.find(str(Setting.parse(text)))) == text
    assert Setting.parse("umda:1.5:T->3:T") == Setting("umda", "1.5:T", "3:T")


def test_tags_never_meet_and_suit_folders() -> None:
    pairs = [
        ("A-B", "C"),
        ("A", "B-C"),
        ("A B", "C"),
        ("A/B", "C"),
        ("A__B", "C"),
        ("A_", "B"),
        ("A", "_B"),
        ("A", "B"),
    ]
    tags = [Setting("umda", *pair).tag for pair in pairs]
    assert len(set(tags)) == len(pairs)
    for tag in tags:
        assert tag.startswith("@umda-")
        assert "__" not in tag + "__2d".lstrip("_")
        assert not set(tag) & set("/ :>")


def test_adaptation_hides_the_target_and_keeps_a_fifth_for_the_test() -> None:
    raw = raw_of(FOUR, "a1z a7x b1z b8x c9x")
    fold = setting_fold(Setting.parse("umda:A:B"), raw)
    assert {case[0] for case in fold["train"]} == {case[0] for case in fold["val"]} == {"a"}
    assert {case[0] for case in fold["test"]} == {"b"}
    people = {key: {case[:2] for case in fold[key]} for key in ("train", "val", "test", "unlabelled")}
    assert len(people["train"]) == 4
    assert len(people["val"]) == len(people["test"]) == 2  # patients 1 to 6 in five parts; the first one has two
    closed = people["val"] | people["test"]
    assert not people["unlabelled"] & closed
    hidden = {f"b{n}{scan}" for n in range(1, 7) for scan in "xy" if f"b{n}" not in closed}
    scans = {case for case in ("a1z", "a7x", "b1z", "b8x") if case[:2] not in closed}
    assert set(fold["unlabelled"]) == hidden | scans
    seen = fold_cases([fold], 0, None, raw.patients())
    assert list(seen.labelled) == fold["train"]
    assert list(seen.unlabelled) == fold["unlabelled"]
    assert not any(case.startswith("c") for case in (*seen.labelled, *seen.unlabelled, *seen.validation))


def test_test_scans_of_the_target_leave_all_other_patients_to_learn_from() -> None:
    fold = setting_fold(Setting.parse("umda:A:B"), raw_of("a1x a2x b1x", "", "a9x b9x c9x"))
    assert fold["test"] == ["b9x"]
    assert fold["unlabelled"] == ["b1x"]
    assert sorted(fold["train"] + fold["val"]) == ["a1x", "a2x"]


def test_generalisation_labels_a_part_of_each_source_domain() -> None:
    raw = raw_of(FOUR + " d1x d2x", "a7x b8x c9x d9x", "a9x d8x")
    fold = setting_fold(Setting.parse("mdg:C"), raw)
    assert {case[0] for case in fold["train"]} == {case[0] for case in fold["val"]} == set(OTHERS)
    assert all(case.startswith("c") for case in fold["test"])
    assert len(fold["test"]) == 13
    assert fold["unlabelled"] == ["a7x", "b8x", "d9x"]
    for budget, counts in (
        ("2%", {"a": 1, "b": 1, "d": 1}),
        ("26%", {"a": 2, "b": 2, "d": 1}),
        ("1", dict.fromkeys(OTHERS, 1)),
    ):
        seen = fold_cases([fold], 0, LabelBudget.parse(budget), raw.patients())
        people = {case[:2] for case in seen.labelled}
        assert {domain: sum(name[0] == domain for name in people) for domain in OTHERS} == counts
        assert {*seen.labelled, *seen.unlabelled} == {*fold["train"], "a7x", "b8x", "d9x"}
        assert not {case[:2] for case in seen.unlabelled} & people
    with pytest.raises(DataError, match="2 patients, the domain D has 1"):
        fold_cases([fold], 0, LabelBudget.parse("2"), raw.patients())


def test_a_domain_with_one_patient_trains_and_does_not_validate() -> None:
    fold = setting_fold(Setting.parse("mdg:C"), raw_of("a1x a2x b1x", "", "", "c1x"))
    assert "b1x" in fold["train"]
    assert {case[0] for case in fold["val"]} == {"a"}
    alone = setting_fold(Setting.parse("mdg:C"), raw_of("a1x b1x", "", "", "c1x"))
    assert alone["train"] == alone["val"] == ["a1x", "b1x"]
    raw = raw_of("a1x b1x", "", "", "c1x")
    assert fold_cases([alone], 0, LabelBudget.parse("1"), raw.patients()).validation == ("a1x", "b1x")


def test_a_target_with_one_patient_cannot_be_adapted_to() -> None:
    with pytest.raises(DataError, match="no scan to learn from") as caught:
        setting_fold(Setting.parse("umda:A:B"), raw_of("a1x a2x b1x"))
    assert "b1x" in caught.value.why
    fold = setting_fold(Setting.parse("umda:A:B"), raw_of("a1x a2x b1x", "b2x"))
    assert (fold["unlabelled"], fold["test"]) == (["b2x"], ["b1x"])
    with pytest.raises(DataError, match="no scan to learn from"):
        setting_fold(Setting.parse("umda:A:B"), raw_of("a1x a2x", "", "b1x"))


def test_problems_of_the_domains() -> None:
    raw = raw_of("a1x b1x")
    for setting, data, error, words in (
        ("umda:A:X", raw, UsageError, ("no domain 'X'", "A, B")),
        ("mdg:a", raw, UsageError, ("no domain 'a'",)),
        ("mdg:A", raw_of("a1x a2x"), DataError, ("one domain",)),
        ("umda:A:B", raw_of("a1x a1y b1x", domains={"a1y": "B"}), DataError, ("1 patient(s) are in two domains", "a1")),
        ("umda:A:B", raw_of("b1x b2x", "a1x"), DataError, ("no labelled case",)),
        ("mdg:B", dataclasses.replace(raw, dataset_json={}), DataError, ("has no domains", '"domain": "A"')),
    ):
        with pytest.raises(error) as caught:
            setting_fold(Setting.parse(setting), data)
        assert all(word in str(caught.value) for word in words)


def test_a_close_name_is_proposed() -> None:
    with pytest.raises(UsageError) as caught:
        setting_fold(Setting.parse("mdg:Siemen"), raw_of("a1x b1x", domains={"a1x": "Siemens"}))
    assert caught.value.run == "-setting mdg:Siemens"


def test_only_the_cases_of_the_setting_are_seen() -> None:
    raw = raw_of(FOUR, "a7x b7x c7x", "a9x b9x c9x")
    fold = setting_fold(Setting.parse("mdg:C"), raw)
    seen = seen_part(raw, fold)
    assert not seen.whole
    assert raw.whole
    names = [*seen.labelled, *seen.unlabelled, *seen.test]
    assert {name[0] for name in names} == {"a", "b"}
    assert list(seen.test) == ["a9x", "b9x"]
    hidden_test = seen_part(raw_of(FOUR), setting_fold(Setting.parse("umda:A:B"), raw_of(FOUR)))
    assert not {
        name for name in hidden_test.labelled if name in setting_fold(Setting.parse("umda:A:B"), raw_of(FOUR))["test"]
    }


def test_files_of_the_unseen_domain_do_not_change_the_fold() -> None:
    there = setting_fold(Setting.parse("mdg:C"), raw_of("a1x a2x b1x b2x c1x", "a7x c7x", "c9x"))
    gone = setting_fold(Setting.parse("mdg:C"), raw_of("a1x a2x b1x b2x", "a7x", "", gone="c1x c7x c9x"))
    assert json.dumps(there) == json.dumps(gone)


def test_scans_without_a_domain_are_told() -> None:
    raw = raw_of("a1x b1x", "b2x", domains={"b2x": ""})
    assert domains_of(raw.dataset_json) == {"a1x": "A", "b1x": "B"}
    (line,) = without_domain(raw)
    assert line.startswith("1 scan(s) have no domain")
    assert "b2x" in line
    assert without_domain(raw_of("a1x b1x")) == []


def test_options_that_contradict_each_other() -> None:
    assert choose(None, None, 7, 3) == (None, "7")
    assert choose(None, "acdc-7", None, 0) == (None, "7")
    assert choose("mdg:A", None, "2%", 0) == (Setting("mdg", "", "A"), "2%")
    assert choose(Setting("mdg", "", "A"), None, None, 0) == (Setting("mdg", "", "A"), None)
    for arguments, word in (
        (("mdg:A", "acdc-7", None, 0), "exclude each other"),
        (("mdg:A", None, None, 1), "one fold"),
        (("mdg:A", None, None, "all"), "one fold"),
    ):
        with pytest.raises(UsageError, match=word):
            choose(*arguments)


@pytest.mark.parametrize(
    ("short", "full", "kind", "target", "budget", "counts"),
    [
        ("mmwhs-mr2ct", "mmwhs_mr_to_ct-16", "umda", "CT", "16", (16, 13)),
        ("mmwhs-ct2mr", "mmwhs_ct_to_mr-16", "umda", "MR", "16", (16, 13)),
        ("mnms-to-a-2", "mnms_to_a-5", "mdg", "A", "5", (5, 220)),
        ("mnms-to-a-5", "mnms_to_a-13", "mdg", "A", "13", (13, 212)),
        ("mnms-to-b-2", "mnms_to_b-4", "mdg", "B", "4", (4, 191)),
        ("mnms-to-b-5", "mnms_to_b-11", "mdg", "B", "11", (11, 184)),
        ("mnms-to-c-2", "mnms_to_c-6", "mdg", "C", "6", (6, 264)),
        ("mnms-to-c-5", "mnms_to_c-15", "mdg", "C", "15", (15, 255)),
        ("mnms-to-d-2", "mnms_to_d-6", "mdg", "D", "6", (6, 264)),
        ("mnms-to-d-5", "mnms_to_d-15", "mdg", "D", "15", (15, 255)),
    ],
)
def test_published_settings_have_the_counts_of_the_papers(
    short: str, full: str, kind: str, target: str, budget: str, counts: tuple[int, int]
) -> None:
    setting, labelled = choose(None, short, None, 0)
    assert setting == of_protocol(full)
    assert (setting.kind, setting.target, str(setting), labelled) == (kind, target, full, budget)
    assert Setting.find(str(setting)) == setting
    protocol, _ = find_protocol(short)
    names = [*protocol.train, *protocol.validation, *protocol.test]
    source = "MR" if target == "CT" else "CT"
    domains = dict.fromkeys(names, "?") | dict.fromkeys(protocol.test, target)
    if kind == "umda":
        domains = {name: name[:2].upper() for name in names}
    else:
        domains |= dict.fromkeys(protocol.train, next(iter(protocol.domains["labelled"])))
    raw = RawDataset(
        "Dataset001_X", Path("missing"), {"cases": {name: {"domain": domains[name]} for name in names}},
        {name: RawCase(name, (), None, name) for name in names}, {}, {},
    )  # fmt: skip
    fold = setting_fold(setting, raw)
    seen = fold_cases([fold], 0, LabelBudget.parse(labelled), raw.patients())
    assert (len(seen.labelled), len(seen.unlabelled)) == counts
    assert not {domains[case] for case in seen.validation} & {target}
    assert not {*seen.labelled, *seen.unlabelled, *seen.validation} & set(fold["test"])
    if kind == "umda":
        assert {domains[case] for case in seen.labelled} == {source}
        assert {domains[case] for case in seen.unlabelled} == {target}
        assert (len(seen.validation), len(fold["test"])) == (4, 4)
    else:
        assert seen.validation == seen.labelled
        assert not any(domains[case] == target for case in seen_part(raw, fold).labelled)


def test_a_protocol_without_domains_is_no_setting() -> None:
    assert of_protocol("acdc-7") is None
    assert of_protocol("mnms_to_a") is None


def test_domains_are_drawn_equally_often() -> None:
    cases = ["a1", "a2", "a3", "b1", "c1", "c2"]
    shares = domain_probabilities(cases, {case: case[0] for case in cases})
    assert shares == pytest.approx([1 / 9] * 3 + [1 / 3] + [1 / 6] * 2)
    drawn = np.random.RandomState(0).choice(cases, 6000, p=shares)
    counts = [sum(case[0] == domain for case in drawn) for domain in "abc"]
    assert max(abs(count - 2000) for count in counts) < 150  # four standard deviations
    assert domain_probabilities(["x", "y"], {}) == [0.5, 0.5]
