"""What nnssl offers, as plain data: reading it imports neither torch nor nnU-Net."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nnssl.errors import UsageError


@dataclass(frozen=True)
class Method:
    """One training method.

    Attributes:
        name: file name in `nnssl_trainers`, docs page and test.
        class_name: what `-tr` takes.
        paper: citation.
        needs: what the data set must hold beyond labelled cases.
        activations: activation memory of a step in units of nnU-Net's supervised step at the plan's batch size.
        students: networks trained by gradient (weights, gradients, momentum, half-precision copy: 16 bytes a weight).
        teachers: networks held for inference only (4 bytes a weight).
    """

    name: str
    class_name: str
    paper: str
    needs: tuple[str, ...]
    activations: float
    students: int = 1
    teachers: int = 0

    @property
    def module(self) -> str:
        """Dotted name of the file that holds the class."""
        return f"nnssl_trainers.{self.name}"

    def load(self) -> Any:  # noqa: ANN401 - a trainer class, known to this module by name only
        """Import and return the trainer class."""
        return getattr(import_module(self.module), self.class_name)


METHODS: dict[str, Method] = {
    method.class_name: method
    for method in (
        Method(
            name="supervised",
            class_name="SupervisedTrainer",
            paper="Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image "
            "segmentation, Nature Methods 18, 2021",
            needs=(),
            activations=1.0,
        ),
        Method(
            name="mean_teacher",
            class_name="MeanTeacherTrainer",
            paper="Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017",
            needs=("unlabelled",),
            activations=2.0,
            teachers=1,
        ),
    )
}


def find_method(name: str) -> Method:
    """Return the method that `-tr` names.

    Raises:
        UsageError: no such method; the message lists the valid names.
    """
    if name in METHODS:
        return METHODS[name]
    close = difflib.get_close_matches(name, METHODS, n=1)
    raise UsageError(
        f"unknown trainer '{name}'",
        where=f"-tr {name}",
        why=f"known trainers: {', '.join(METHODS)}",
        run=f"-tr {close[0]}" if close else "nnssl_methods",
    )
