"""Every method and every network has its papers, and BibTeX can read them."""

from __future__ import annotations

import re

import pytest

from nnssl.citations import BIBLIOGRAPHY, HOST, PAPERS, citation, entries
from nnssl.errors import UsageError
from nnssl.registry import METHODS, NETWORKS


@pytest.mark.parametrize("name", [method.name for method in METHODS.values()] + list(NETWORKS))
def test_every_method_and_network_has_its_papers(name: str) -> None:
    found = citation(name)
    assert list(found)[-1] == HOST
    assert set(PAPERS[name]) <= set(found)
    paper = {**NETWORKS, **{method.name: method for method in METHODS.values()}}[name].paper.lower()
    years = set(re.findall(r"\b(?:19|20)\d\d\b", re.sub(r"flare 2022", "2022", paper)))
    cited = {re.findall(r"year = \{(\d{4})\}", entry)[0] for entry in found.values()}
    assert years <= cited | {"2016"}
    assert any(family(entry) in paper for key, entry in found.items() if key in PAPERS[name])


def family(entry: str) -> str:
    """Return the family name of the first author."""
    return re.findall(r"author = \{(\w+)", entry)[0].lower()


def test_the_table_names_nothing_else() -> None:
    assert set(PAPERS) == {method.name for method in METHODS.values()} | set(NETWORKS)
    assert {key for keys in PAPERS.values() for key in keys} == set(entries())


def test_the_file_is_bibtex() -> None:
    text = BIBLIOGRAPHY.read_text(encoding="utf-8")
    assert text.count("\n@") + 1 == len(entries())
    for key, entry in entries().items():
        assert re.match(r"@(article|inproceedings|misc)\{" + key + ",\n", entry)
        assert entry.count("{") == entry.count("}")
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, flags=re.MULTILINE))
        assert {"title", "author", "year"} <= set(fields)
        assert len(fields) == entry.count("\n") - 1


def test_a_trainer_is_found_by_its_class_name() -> None:
    assert citation("DSMTTrainer") == citation("dsmt")
    assert list(citation("SupervisedTrainer")) == [HOST]


def test_an_unknown_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown method or network 'dsmtt'"):
        citation("dsmtt")
