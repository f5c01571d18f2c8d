"""A study as text: the plan before it begins, its states, and its failed runs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnssl.config import format_value
from nnssl.names import DEFAULT_PLANS
from nnssl.sweep.estimate import Estimate, SweepPlan, total
from nnssl.sweep.store import STATES, Task
from nnssl.sweep.study import StudyRun

GAP = "  "
COLUMNS = ("trainer", "settings", "configuration", "fold", "labelled", "pick", "seed", "state")


def plan_text(plan: SweepPlan, folder: str | Path) -> str:
    """Return the runs that a study has, one a line, with time and disk, their sums, and the next command.

    Args:
        plan: of the study.
        folder: of the study.
    """
    pairs = list(zip(plan.runs, plan.estimates, strict=True))
    rows: list[tuple[str, ...]] = [(*COLUMNS, "time", "disk")]
    rows += [(*_cells(task), duration(estimate.seconds), size(estimate.disk_bytes)) for task, estimate in pairs]
    lines = [*(f"plan first:  {each.command}" for each in plan.plans), *_aligned(rows)]
    tasks, left = plan.runs, [estimate for task, estimate in pairs if task.state != "done"]
    spent = total(left)
    lines.append(
        f"{len(tasks)} run(s), {len(left)} to do: about {duration(spent.seconds)} of training one after another, "
        f"{size(spent.disk_bytes)} of disk"
    )
    if left and (spent.seconds is None or spent.disk_bytes is None):
        first = next(run for run in (task.job for task in tasks) if isinstance(run, StudyRun))
        options = f" -p {first.plans}" if first.plans != DEFAULT_PLANS else ""
        options += f" -labelled {dataclasses.replace(first.budget, pick=0)}" if first.budget else ""
        probe = f"nnssl_train {first.dataset} {first.configuration} {first.fold}{options} -tr SupervisedTrainer"
        lines.append("?: no run of this data set and configuration tells; the first one will, or a probe:")
        lines.append(f"    {probe} -num_iterations 100 -tag pace --no_val")
    lines.append(f"run:  the same command without --dry_run, and later nnssl_sweep -o {folder}")
    return "\n".join(lines)


def commands_text(plan: SweepPlan) -> str:
    """Return the command lines of the runs that are not done, one a line."""
    return "\n".join(plan.commands)


def status_text(tasks: Sequence[Task], folder: str | Path | None) -> str:
    """Return how many tasks are in which state, and what failed or stopped, with the messages.

    Args:
        tasks: the runs.
        folder: of the study, for the next command; None for none.
    """
    counts = Counter(task.state for task in tasks)
    lines = [f"{len(tasks)} run(s): " + (", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))]
    for task in tasks:
        if task.state in ("failed", "stopped"):
            message = task.message.replace("\n", "\n      ")
            lines += [f"  {task.state}: {task.command}", f"      {message}"]
    if folder is not None:
        done = counts["done"] == len(tasks)
        lines.append(f"run:  nnssl_compare {folder}" if done else f"run:  nnssl_sweep -o {folder}")
    return "\n".join(lines)


def task_dict(task: Task) -> dict[str, object]:
    """Return a task as plain values for JSON."""
    job = task.job
    what = job.to_dict() if isinstance(job, StudyRun) else {"command": job.command}
    return {**what, "state": task.state, "message": task.message, "folder": task.folder, "starts": task.starts,
            "seconds": round(task.seconds, 1), "memory_bytes": task.memory_bytes}  # fmt: skip


def plan_dicts(tasks: Sequence[Task], estimates: Sequence[Estimate]) -> list[dict[str, object]]:
    """Return the runs of a plan as plain values for JSON; the arguments as of `plan_text`."""
    return [
        {**task_dict(task), "estimated_seconds": estimate.seconds, "estimated_disk_bytes": estimate.disk_bytes}
        for task, estimate in zip(tasks, estimates, strict=True)
    ]


def duration(seconds: float | None) -> str:
    """Return hours, minutes and seconds; `?` for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def size(number: int | None) -> str:
    """Return bytes in MB or GB; `?` for None."""
    if number is None:
        return "?"
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _cells(task: Task) -> tuple[str, ...]:
    run = task.job
    if not isinstance(run, StudyRun):
        return ()
    settings = ",".join(f"{name}={format_value(value)}" for name, value in sorted(run.settings.config.items()))
    budget = run.budget
    labels = str(dataclasses.replace(budget, pick=0)) if budget else "all"
    pick = str(budget.pick) if budget else "0"
    return (run.trainer, settings or "-", run.configuration, run.fold, labels, pick, str(run.settings.seed), task.state)


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    return [GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in listed]
