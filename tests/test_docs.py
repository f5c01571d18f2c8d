"""The built documentation: formulas are drawn, nothing comes from the network, and no page is wider than its window."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
WIDTHS = (390, 768, 1280)
MEASURE = """<!doctype html><body><script>
const pages = %s, widths = %s, found = [];
async function measure() {
  for (const page of pages) for (const width of widths) {
    const frame = document.createElement("iframe");
    frame.style.width = width + "px"; frame.style.height = "800px"; frame.style.border = "0";
    const loaded = new Promise(done => { frame.onload = done; });
    frame.src = page; document.body.append(frame); await loaded;
    const root = frame.contentDocument.documentElement;
    found.push([page, width, root.scrollWidth]); frame.remove();
  }
  const result = document.createElement("pre");
  result.id = "found"; result.textContent = JSON.stringify(found); document.body.append(result);
}
measure();
</script></body>"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the documentation from a copy."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("_build", "generated"))
    words = [sys.executable, "-m", "sphinx", "-q", "-W", str(folder / "docs"), str(folder / "html")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.nightly
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_no_page_is_wider_than_its_window(built: Path, tmp_path: Path) -> None:
    pages = [path.as_uri() for path in sorted(built.rglob("*.html")) if "_static" not in path.parts]
    harness = tmp_path / "measure.html"
    harness.write_text(MEASURE % (json.dumps(pages), json.dumps(WIDTHS)), encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    words = [str(CHROMIUM), *flags, "--virtual-time-budget=600000", "--dump-dom", harness.as_uri()]
    dom = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300).stdout
    (text,) = re.findall(r'<pre id="found">(.*?)</pre>', dom)
    found = json.loads(html.unescape(text))
    assert len(found) == len(pages) * len(WIDTHS) > 60
    assert [(Path(page).name, width, wide) for page, width, wide in found if wide > width] == []


@pytest.mark.nightly
def test_pages_take_nothing_from_the_network(built: Path) -> None:
    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//[^"]*"', text) == []
        assert re.findall(r'<link[^>]*rel="(?:stylesheet|preload)"[^>]*href="(?:https?:)?//', text) == []


@pytest.mark.nightly
def test_formulas_are_drawn(built: Path) -> None:
    page = (built / "methods" / "mean_teacher.html").read_text(encoding="utf-8")
    assert page.count("<math ") > 5
    assert page.count('<div class="formula">') >= 1
    assert "<munderover" not in page


def test_the_index_of_an_accented_letter_stands_beside_the_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docutils")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from _formulas import mathml

    assert shape(mathml(r"\tilde x_u", as_block=False)) == "math(msub(mover(mi mo) mi))"
    assert shape(mathml(r"\hat y_u^2", as_block=False)) == "math(msup(msub(mover(mi mo) mi) mn))"
    assert shape(mathml(r"\sum_{i}^{n} x_i", as_block=True)) == "div(math(munderover(mo mi mi) msub(mi mi)))"


LAB_BOOK = """
| labelled | trainer | iterations | seed | Dice |
| --- | --- | --- | --- | --- |
| A 3 | SupervisedTrainer | 5,000 | 0 | 0.60 |
| A 3 | SupervisedTrainer | 5,000 | 1 | 0.50 |
| A 3 | SupervisedTrainer | 2,500 | 0 | 0.10 |
| A 3 | FixMatchTrainer, `threshold=0.8` | 5,000 | 0 | 0.99 |
| A 3 | FixMatchTrainer | 5,000 | 0 | 0.70 |
| A 3 | FixMatchTrainer | 2,500 + 2,500 | 1 | 0.80 |
| A 3 | DSMTTrainer, `student2=plan` | 5,000 | 0 | 0.55 |
| A 70 | SupervisedTrainer | 5,000 | 0 | 0.80 |

| labelled | trainer | Dice, seed 0 | HD95 mm | Dice, seed 1 |
| --- | --- | --- | --- | --- |
| B 5 | SupervisedTrainer | 0.60 | 2.0 | 0.50 |
| B 5 | the same, `x=1` | 0.99 | 2.0 |  |
| B 5 | MeanTeacherTrainer | 0.65 | 0.5 | 0.75 |
| B 9 | SupervisedTrainer | 0.70 | 2.0 |  |

| few A | seeds | gap closed |
| --- | --- | --- |
| FixMatchTrainer | 0, 1 | 0.75 [−0.20, 1.10] |
| control | 0 | – |
"""


def test_the_gap_closed_of_the_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """(0.70 - 0.60) / (0.80 - 0.60) with seed 0, and (0.80 - 0.50) / (0.80 - 0.50) with seed 1."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from _gain import Panel, gaps_closed, intervals_of, runs_of, write_gain

    runs = runs_of(LAB_BOOK)
    first, second = Panel("A", "A 3", "A 70", "5,000", "few A"), Panel("B", "B 5", "B 9")
    assert intervals_of(LAB_BOOK, first) == {"FixMatchTrainer": (-0.2, 1.1)}
    assert intervals_of(LAB_BOOK, second) == {}
    assert gaps_closed(runs, first) == {
        "FixMatchTrainer": pytest.approx([0.5, 1.0]),
        "DSMTTrainer": pytest.approx([-0.25]),
    }
    assert gaps_closed(runs, second) == {"MeanTeacherTrainer": pytest.approx([0.5, 1.25])}
    with pytest.raises(ValueError, match="has no rows 'C 1 SupervisedTrainer'"):
        gaps_closed(runs, Panel("C", "C 1", "A 70"))
    write_gain(ROOT / "docs" / "results.md", tmp_path)
    assert "| FixMatchTrainer |" in (tmp_path / "gain.md").read_text()
    assert ET.parse(tmp_path / "gain_dark.svg").getroot().tag.endswith("svg")


def shape(text: str) -> str:
    """Return the names of nested elements."""

    def of(element: ET.Element) -> str:
        inside = " ".join(map(of, element))
        return (
            element.tag.partition("}")[2] or element.tag
            if not inside
            else f"{element.tag.rpartition('}')[2]}({inside})"
        )

    return of(ET.fromstring(text))
