"""What a run shows while it trains: a header, the expected time, and a progress bar or one line per minute."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from typing_extensions import Self

from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.epoch_log import Row

ProgressStyle = Literal["bar", "lines", "off"]
SECONDS_BETWEEN_LINES = 60.0
MEASURED_ITERATIONS, MEASURED_SECONDS = 10, 5.0  # the expected time needs at least this many iterations and seconds
LOST_DICE = 0.1  # a structure whose pseudo-Dice exceeded this value counts as learned
UNLEARNED_SHARE = 0.2  # in this first share of a run, a prediction of background only is no reason to warn
log = logging.getLogger("nnssl.train")


def header_lines(trainer: Any) -> list[str]:  # noqa: ANN401 - the frame's trainer, which imports this module
    """Return the header of a run, line by line: method, run, cases, network, length, folder."""
    cases, settings, plan = trainer.fold_cases(), trainer.settings, trainer.configuration_manager
    network = unwrap(trainer.network)
    weights = sum(parameter.numel() for parameter in network.parameters())
    place = f"{trainer.plans_manager.dataset_name}, {trainer.configuration_name}, fold {trainer.fold}"
    unlabelled = len(cases.unlabelled) if trainer.uses_unlabelled else "no"
    patch = " x ".join(map(str, plan.patch_size))
    return [
        f"{type(trainer).__name__} on {place}, run {settings.tag or 'default'}",
        f"cases: {len(cases.labelled)} labelled, {unlabelled} unlabelled, {len(cases.validation)} for validation",
        f"network: {type(network).__name__}, {weights / 1e6:.1f} million weights, on {trainer.device.type}",
        f"patch {patch}, batch {trainer.batch_size}, seed {settings.seed}",
        f"iterations: {trainer.iteration} of {settings.num_iterations} done",
        f"folder: {trainer.output_folder}",
    ]


class Reporter:
    """The progress of a run: a bar on a terminal, one line per minute elsewhere, and in both cases the expected time.

    Args:
        style: `bar`, `lines` or `off`; None takes the bar on a terminal and lines elsewhere.
        total: length of the run in iterations.
        done: number of iterations that earlier sessions finished.
    """

    def __init__(self, style: ProgressStyle | None, total: int, done: int) -> None:
        self.style: ProgressStyle = style or ("bar" if sys.stderr.isatty() else "lines")
        self.total, self.first, self.done = total, done, done
        self._stack = contextlib.ExitStack()
        self._bar: Any = None
        self._started = self._last_line = time.monotonic()
        self._estimated = False

    def __enter__(self) -> Self:
        if self.style == "bar":
            self._stack.enter_context(logging_redirect_tqdm())
            self._bar = self._stack.enter_context(tqdm(total=self.total, initial=self.done, unit="it", smoothing=0.05))
        self._started = self._last_line = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def step(self) -> str | None:
        """Count one iteration, and return the line to show now, or None."""
        self.done += 1
        if self._bar is not None:
            self._bar.update()
        if self.style == "off":
            return None
        now = time.monotonic()
        mean = (now - self._started) / (self.done - self.first)
        left = timedelta(seconds=round((self.total - self.done) * mean))
        measured = self.done - self.first >= MEASURED_ITERATIONS and now - self._started >= MEASURED_SECONDS
        if measured and not self._estimated:
            self._estimated, self._last_line = True, now
            return f"expected time: {left} for {self.total - self.done} iterations ({mean:.2f} s each)"
        if self.style == "lines" and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            return f"iteration {self.done}/{self.total}  {mean:.2f} s/iteration  ETA {left}"
        return None


def learning_warnings(rows: Sequence[Row], names: Sequence[str], total: int) -> list[str]:
    """Return the warnings that the pseudo-Dice of the structures gives reason for.

    A network that predicts only background, or no longer finds a structure that it found before, is a reason.

    Args:
        rows: the log so far with one row per epoch; `pseudo_dice_k` belongs to the k-th name.
        names: the names of the structures.
        total: length of the run in iterations.
    """
    if not rows:
        return []
    keys = [f"pseudo_dice_{k + 1}" for k in range(len(names))]
    now = {key: rows[-1].get(key, math.nan) for key in keys}
    known = {key: value for key, value in now.items() if not math.isnan(value)}
    if known and not any(known.values()):
        if rows[-1]["iteration"] < UNLEARNED_SHARE * total:
            return []
        hint = "train longer (-num_iterations), or check that images and labels fit (nnssl_plan_and_preprocess)"
        return [f"the network predicts only background in the validation patches; {hint}"]
    best = {key: max(row.get(key, 0.0) for row in rows) for key in keys}
    lost = [
        f"{name} (pseudo-Dice {best[key]:.2f} before)"
        for key, name in zip(keys, names, strict=True)
        if known.get(key) == 0 and best[key] > LOST_DICE
    ]
    hint = "train longer (-num_iterations), or give the terms on unlabelled patches a smaller weight"
    return [f"the network no longer finds {', '.join(lost)}; {hint}"] if lost else []
