"""A report as a reader gets it: its panels, its names as text, its viewer, its print, and no network."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnssl.errors import DataError, UsageError
from nnssl.reports.api import report
from tests.reports.browser import CHROMIUM, browser
from tests.reports.study_for_tests import HOSTILE, Study, make_study

PANELS = (
    "summary", "comparison", "structures", "efficiency", "cases", "viewer", "curves", "pseudo", "data", "decisions",
    "versions", "commands",
)  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
READY = "document.body.dataset.viewer === 'ready'"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(study: Study) -> Path:
    return report([study.root], output_folder=study.root / "report", cases=2).index


def test_a_study_folder_is_compared_with_its_baseline(study: Study, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert all(f'<section id="{name}"' in text for name in PANELS)
    assert '<p class="verdict verdict-helped">helped</p>' in text
    assert "FixMatchTrainer helped: +" in text
    assert "Patient data." in text
    assert len(list((page.parent / "pictures").glob("case_*.png"))) == 4
    assert len(list((page.parent / "volumes").glob("*.js"))) == 4
    assert "Redistribution and use" in (page.parent / "niivue.umd.js").read_text(encoding="utf-8")[:1000]


def test_names_with_html_stand_as_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "<script>alert" not in text
    assert "&lt;img src=x onerror=alert(2)&gt;_$x$" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_single_file_holds_everything(study: Study, tmp_path: Path) -> None:
    result = report([study.root], output_folder=tmp_path / "one", cases=1, single_file=True)
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["index.html"]
    assert result.size_bytes == result.index.stat().st_size
    sources = re.findall(r'(?:src|href)="([^"#][^"]*)"', result.index.read_text(encoding="utf-8"))
    assert sources
    assert all(source.startswith("data:") for source in sources)


def test_a_new_report_leaves_no_picture_of_an_earlier_one(study: Study, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    report([study.root], output_folder=tmp_path, cases=2)
    report([study.root], output_folder=tmp_path, cases=1)
    assert len(list((tmp_path / "pictures").glob("case_*.png"))) == len(list((tmp_path / "volumes").iterdir())) == 2
    report([study.root], output_folder=tmp_path, cases=1, single_file=True)
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {"index.html", "mine.txt"}


def test_a_single_method_has_no_verdict(study: Study, tmp_path: Path) -> None:
    result = report([f"mine={study.method}"], output_folder=tmp_path, cases=1)
    text = result.index.read_text(encoding="utf-8")
    assert result.comparison is None
    assert "This report is on one method, mine." in text
    assert 'class="verdict' not in text


def test_masks_that_are_gone_leave_the_rest_of_the_report(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", hostile=False)
    for file in [*study.labels.iterdir(), *study.method.glob("*.nii.gz"), *study.baseline.glob("*.nii.gz")]:
        file.unlink()
    text = report([study.root], output_folder=tmp_path / "report").index.read_text(encoding="utf-8")
    assert "neither masks nor reference are found" in text
    assert "No scan and no mask was found for the viewer." in text


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, UsageError),
        ({"places": ["a"], "dataset": 1}, UsageError),
        ({"places": ["/nowhere/at/all"]}, DataError),
        ({"places": ["a"], "metric": "dice"}, UsageError),
        ({"places": ["a"], "cases": -1}, UsageError),
    ],
)
def test_wrong_arguments_write_nothing(options: dict[str, object], error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        report(output_folder=tmp_path / "report", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "report").exists()


@needs_browser
@pytest.mark.slow
def test_a_browser_draws_the_report_and_asks_no_network(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        for width, dark in ((1280, False), (390, True)):
            tab.open(page, width, dark)
            tab.wait_for(READY)
            assert tab.value("document.documentElement.scrollWidth") <= width
            shown = tab.value("[...document.querySelectorAll('main > section')].filter(s => s.offsetHeight > 40)"
                              ".map(s => s.id)")  # fmt: skip
            assert tuple(shown) == PANELS
            assert tab.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert colours_of_the_canvas(tab, tmp_path / f"{width}.png") > 50
        names = tab.value("[...document.querySelectorAll('.case h3')].map(h => h.textContent)")
        assert HOSTILE in tab.value("document.getElementById('cases').textContent")
        assert len(names) == 4
        assert tab.value("document.querySelectorAll('.labels li')[1].textContent.trim()") == "<script>alert(1)</script>"
    assert tab.problems == []
    assert {address.partition(":")[0] for address in tab.addresses} <= {"file", "data", "blob"}


@needs_browser
@pytest.mark.slow
def test_the_viewer_of_a_single_file_changes_with_its_controls(study: Study, tmp_path: Path) -> None:
    index = report([study.root], output_folder=tmp_path / "one", cases=1, single_file=True).index
    with browser(tmp_path / "profile") as tab:
        tab.open(index)
        tab.wait_for(READY)
        boxes = "[...document.querySelectorAll('#viewer-layers input')]"
        assert tab.value(f"{boxes}.map(box => box.checked)") == [False, False, True]
        before = picture_of_the_canvas(tab, tmp_path / "before.png")
        tab.value(f"{boxes}[2].click()")
        without = picture_of_the_canvas(tab, tmp_path / "without.png")
        assert (before != without).any()
        assert saturated(before) > 10 * saturated(without)
        tab.value("document.getElementById('viewer-case').selectedIndex = 1, delete document.body.dataset.viewer,"
                  "document.getElementById('viewer-case').dispatchEvent(new Event('change'))")  # fmt: skip
        tab.wait_for(READY)
    assert tab.problems == []
    assert all(not address.startswith("http") for address in tab.addresses)


@needs_browser
@pytest.mark.slow
def test_no_table_is_cut_in_print(page: Path, tmp_path: Path) -> None:
    """On the width of A4 without margins, 182 mm at 96 dots an inch, no table is wider than the page."""
    with browser(tmp_path / "profile") as tab:
        tab.open(page, 688)
        tab.call("Emulation.setEmulatedMedia", media="print")
        assert tab.value("getComputedStyle(document.getElementById('viewer')).display") == "none"
        widest = "Math.max(...[...document.querySelectorAll('table')].map(t => t.getBoundingClientRect().right))"
        assert tab.value(widest) <= 688
        assert tab.value("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
        assert tab.pdf(tmp_path / "report.pdf").startswith(b"%PDF")


def picture_of_the_canvas(tab, file: Path) -> np.ndarray:
    """Return the canvas on the screen, of shape (H, W, 3)."""
    tab.value("document.getElementById('viewer-canvas').scrollIntoView()")
    time.sleep(0.7)  # the browser draws the next frames
    box = tab.value("(({x, y, width, height}) => [x, y, width, height])"
                    "(document.getElementById('viewer-canvas').getBoundingClientRect())")  # fmt: skip
    tab.picture(file, whole=False)
    x, y, width, height = map(int, box)
    return np.asarray(Image.open(file).convert("RGB"))[y : y + height, x : x + width].astype(int)


def colours_of_the_canvas(tab, file: Path) -> int:
    """Return the number of different colours that the canvas shows."""
    return len(np.unique(picture_of_the_canvas(tab, file).reshape(-1, 3), axis=0))


def saturated(picture: np.ndarray) -> int:
    """Return the number of coloured pixels that are not the red cross-hair."""
    spread = picture.max(axis=2) - picture.min(axis=2)
    red = (picture[..., 0] > 120) & (picture[..., 1] < 60) & (picture[..., 2] < 60)
    return int(((spread > 40) & ~red).sum())
