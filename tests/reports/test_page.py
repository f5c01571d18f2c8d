from __future__ import annotations

import json
import re
from pathlib import Path

from nnssl.comparison.api import compare_methods
from nnssl.comparison.sources import named_methods
from nnssl.reports.page import NO_CHECK, CasePicture, Page, render, viewer_library
from nnssl.reports.run_facts import facts_of_runs
from tests.comparison.folders_for_tests import numbered, write_run

NAME = "</script><script>alert(1)</script>"


def make_page(tmp_path: Path) -> Page:
    base = write_run(tmp_path, "SupervisedTrainer", numbered([0.5, 0.6]))
    other = write_run(tmp_path, "FixMatchTrainer", numbered([0.6, 0.7]), config={"threshold": 0.7})
    method, others = named_methods([base, f"<b>bold<b>={other}"], None)
    methods = [method, *others]
    runs = [each for method in methods for each in facts_of_runs(method)]
    labels = {"labels": {"background": 0, NAME: 1}}
    page = Page("Dataset001_A", methods, compare_methods(methods[0], others), "Dice", runs, labels)
    page.cases = [CasePicture(NAME, "worst", NAME, "a.png", (NAME,), "volumes/0.js", ("image", f"mask:{NAME}"))]
    page.library = "niivue.umd.js"
    return page


def test_every_text_is_escaped(tmp_path: Path) -> None:
    text = render(make_page(tmp_path), [])
    assert "alert(1)</script>" not in text
    assert "<b>" not in text
    assert "&lt;b&gt;bold&lt;b&gt; " in text
    data = re.search(r'id="viewer-data">(.*?)</script>', text, re.DOTALL)
    assert data
    content = json.loads(data[1])
    assert content["labels"][0]["name"] == content["cases"][0]["case"] == NAME


def test_settings_commands_and_warnings_stand_on_the_page(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    page = make_page(tmp_path)
    assert page.commands() == ["nnssl_train 1 2d 0 -tr SupervisedTrainer", "nnssl_train 1 2d 0 -tr FixMatchTrainer"]
    assert page.warnings()[0] == NO_CHECK
    (decisions,) = page.tables()["decisions"]
    assert ["<b>bold<b>, seed 0, fold 0", "threshold", "0.7"] in [list(row[:3]) for row in decisions.rows]


def test_figures_are_saved_and_described(tmp_path: Path) -> None:
    page = make_page(tmp_path)
    page.runs[0].rows.append({"iteration": 1, "loss": 0.5})
    page.runs[1].pseudo_scores["a"] = (0.5, True)
    saved: dict[str, bytes] = {}

    def save(name: str, content: bytes) -> str:
        saved[name] = content
        return f"pictures/{name}"

    page.draw(save)
    assert list(saved) == ["differences.svg", "course_0.svg", "pseudo_labels_1.svg"]
    assert page.courses[0].text.startswith("SupervisedTrainer, seed 0, fold 0: loss terms")
    assert 'src="pictures/pseudo_labels_1.svg"' in render(page, [])


def test_the_viewer_s_licence_comes_with_it() -> None:
    text = viewer_library()
    assert text.startswith("/*\nNiiVue 0.69.0")
    assert "BSD 2-Clause License" in text[:200]
    assert "</script" not in text  # it can stand inside a page
