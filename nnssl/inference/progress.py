"""Progress of a prediction: one bar over all cases that also moves inside a case, or plain lines."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, Literal

from typing_extensions import Self

logger = logging.getLogger(__name__)

ProgressStyle = Literal["bar", "lines", "off"]


class Progress:
    """Progress over `total` cases: a bar on the terminal, a log line after each tenth of the cases, or nothing."""

    def __init__(self, total: int, style: ProgressStyle) -> None:
        self.total, self.style = total, style
        self.done = 0
        self._fraction = 0.0
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self.style == "bar" and self.total:
            from tqdm import tqdm

            layout = "predicting {percentage:3.0f}%|{bar}| {n:.1f}/{total} cases [{elapsed}<{remaining}]{postfix}"
            self._bar = tqdm(total=self.total, bar_format=layout, dynamic_ncols=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def steps(self, count: int) -> None:
        """Announce that the current case has `count` steps of equal size."""
        self._fraction = 1 / max(1, count)

    def step(self) -> None:
        """Move the bar by one step of the current case, at most to the end of the case."""
        if self._bar is not None:
            self._bar.update(max(0.0, min(self._fraction, self.done + 1 - self._bar.n)))

    def finished(self, name: str) -> None:
        """Move to the end of the current case, whose name is `name`."""
        self.done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(name, refresh=False)
            self._bar.update(self.done - self._bar.n)
        elif self.style == "lines" and self.done * 10 // self.total > (self.done - 1) * 10 // self.total:
            logger.info("predicted %d of %d cases", self.done, self.total)
