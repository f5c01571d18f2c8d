"""The plot and the table of `gain.md`, from the tables of the lab book `results.md`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BASELINE = "SupervisedTrainer"
SEEDS = ("Dice", "Dice, seed 0", "Dice, seed 1")
COLOURS = {"light": ("#1f2937", "#0b4a8f", "#b0b7c3"), "dark": ("#e5e7eb", "#7db5ff", "#4b5563")}  # text, dots, lines
LEAST, MOST = -1.0, 1.0  # of the axis; what lies outside stands at its end with its number


@dataclass(frozen=True)
class Panel:
    """One data set with a few labels, beside all of its labels.

    Attributes:
        title: above the panel.
        few: first cell of the rows with few labels.
        all_labels: first cell of the supervised row with all labels.
        iterations: length of the runs; empty where the table has no such column.
        intervals: header of the table with intervals over patients; empty where there is none.
    """

    title: str
    few: str
    all_labels: str
    iterations: str = ""
    intervals: str = ""


PANELS = (
    Panel("ACDC, 2-D, 3 of 70 patients labelled", "ACDC 3", "ACDC 70", "5,000", "3 of 70 patients"),
    Panel("ACDC, 2-D, 7 of 70 patients labelled", "ACDC 7", "ACDC 70", "5,000", "7 of 70 patients"),
    Panel("hippocampus, 3-D, 5 of 160 cases labelled", "hippocampus 5", "hippocampus 160"),
)


@dataclass(frozen=True)
class Run:
    """One number of the tables.

    Attributes:
        labelled: cell that names data set and labels.
        trainer: cell of the trainer, which may go on with settings.
        iterations: total length, empty where the table does not say.
        seed: of the run.
        dice: mean foreground Dice without post-processing, in [0, 1].
    """

    labelled: str
    trainer: str
    iterations: str
    seed: int
    dice: float

    @property
    def name(self) -> str:
        """The class name of the trainer."""
        return self.trainer.split(",")[0].split(" ")[0]


def runs_of(text: str) -> list[Run]:
    """Return the runs in all tables of a page that have the columns `labelled`, `trainer` and a Dice."""
    found: list[Run] = []
    for header, rows in _tables(text):
        if header[:2] != ["labelled", "trainer"]:
            continue
        for row in rows:
            cells = dict(zip(header, row, strict=False))
            length = re.sub(r"2,500 \+ 2,500", "5,000", cells.get("iterations", ""))
            for column in SEEDS:
                if re.fullmatch(r"[01]\.\d+", cells.get(column, "")):
                    seed = int(cells.get("seed") or column[-1])
                    found.append(Run(cells["labelled"], cells["trainer"], length, seed, float(cells[column])))
    return found


def gaps_closed(runs: list[Run], panel: Panel) -> dict[str, list[float]]:
    """Return method -> share of the label gap that each seed closes: (method - few) / (all - few).

    The run on all labels is that of seed 0. A method counts with its defaults, or with the settings of its first row
    where the table has no run with the defaults.

    Raises:
        ValueError: the tables have no supervised run with few labels, or with all.
    """
    fitting = [run for run in runs if run.iterations == panel.iterations]
    ends = [run.dice for run in fitting if (run.labelled, run.trainer) == (panel.all_labels, BASELINE)]
    starts = {run.seed: run.dice for run in fitting if (run.labelled, run.trainer) == (panel.few, BASELINE)}
    if not ends or not starts:
        raise ValueError(f"results.md has no rows '{panel.few} {BASELINE}' and '{panel.all_labels} {BASELINE}'")
    few = [
        run for run in fitting if run.labelled == panel.few and run.name != BASELINE and run.name.endswith("Trainer")
    ]
    chosen: dict[str, str] = {}
    for run in few:
        if run.name not in chosen or run.trainer == run.name:
            chosen[run.name] = run.trainer
    closed: dict[str, list[float]] = {name: [] for name in chosen}
    for run in few:
        if run.trainer == chosen[run.name] and run.seed in starts and ends[0] > starts[run.seed]:
            closed[run.name].append((run.dice - starts[run.seed]) / (ends[0] - starts[run.seed]))
    return {name: values for name, values in closed.items() if values}


def intervals_of(text: str, panel: Panel) -> dict[str, tuple[float, float]]:
    """Return method -> 95 % interval over patients of the share of the label gap that all its seeds close."""
    found = {}
    for header, rows in _tables(text):
        if panel.intervals and header[0] == panel.intervals:
            for row in rows:
                cell = dict(zip(header, row, strict=True))["gap closed"].replace("−", "-")
                if ends := re.search(r"\[(-?[\d.]+), (-?[\d.]+)\]", cell):
                    found[row[0]] = (float(ends[1]), float(ends[2]))
    return found


def write_gain(results: Path, folder: Path) -> None:
    """Write `gain.md`, the table, and `gain_light.svg` and `gain_dark.svg`, the plot, from the lab book."""
    text = results.read_text(encoding="utf-8")
    runs, intervals = runs_of(text), {panel: intervals_of(text, panel) for panel in PANELS}
    found = {panel: gaps_closed(runs, panel) for panel in PANELS}
    names = list(dict.fromkeys(name for closed in found.values() for name in closed))
    lines = ["| method | " + " | ".join(panel.title for panel in PANELS) + " |", "| --- |" + " --- |" * len(PANELS)]
    for name in names:
        cells = [
            ", ".join(f"{value:+.2f}".replace("-", "−") for value in closed.get(name, [])) or "–"
            for closed in found.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    _write(folder / "gain.md", "\n".join(lines) + "\n")
    for theme in COLOURS:
        _write(folder / f"gain_{theme}.svg", _plot(found, intervals, names, theme))


def _plot(
    found: dict[Panel, dict[str, list[float]]],
    intervals: dict[Panel, dict[str, tuple[float, float]]],
    names: list[str],
    theme: str,
) -> str:
    """Return the plot as SVG: a dot a seed, a line over the 95 % interval of all seeds, where there is one."""
    import io

    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text, dots, lines = COLOURS[theme]
    rules = {"svg.hashsalt": "gain", "font.size": 10, "text.color": text, "axes.edgecolor": lines,
             "axes.labelcolor": text, "xtick.color": text, "ytick.color": text}  # fmt: skip
    with mpl.rc_context(rules):
        figure = Figure(figsize=(6.6, 6.2), layout="constrained")
        FigureCanvasSVG(figure)
        heights = [1 + len(closed) for closed in found.values()]
        panels = figure.subplots(len(found), 1, sharex=True, height_ratios=heights)
        for axes, (panel, closed) in zip(panels, found.items(), strict=True):
            shown = [name for name in names if name in closed]
            for height, name in enumerate(reversed(shown)):
                values, ends = ([min(MOST, max(LEAST, value)) for value in numbers]
                                for numbers in (closed[name], intervals[panel].get(name, ())))  # fmt: skip
                axes.plot(ends, [height] * len(ends), color=dots, linewidth=2, alpha=0.5)
                axes.plot(values, [height] * len(values), "o", color=dots, markersize=5)
                if min(closed[name]) < LEAST:
                    axes.text(
                        LEAST + 0.04, height, f"{min(closed[name]):.0f}".replace("-", "−"), va="center", fontsize=9
                    )
            axes.axvline(0, color=text, linewidth=1)
            axes.set_yticks(range(len(shown)), [name.removesuffix("Trainer") for name in reversed(shown)])
            axes.set_ylim(-0.6, len(shown) - 0.4)
            axes.set_xlim(LEAST - 0.05, MOST)
            axes.grid(axis="x", color=lines, alpha=0.4)
            axes.set_title(panel.title, fontsize=10, loc="left")
            axes.patch.set_alpha(0)
        axes.set_xlabel("share of the label gap that is closed (0: nnU-Net on few labels, 1: on all)")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def _tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield header and rows of every table of a page."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if len(cells) > 2:
            yield cells[0], cells[2:]


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
