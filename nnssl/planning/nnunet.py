"""Small bridges to nnU-Net's planning code: classes by name, its prints, and its idea of the preprocessed folder."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.system.files import write_json

log = logging.getLogger("nnssl.nnunet")


def find_class(name: str, package: str, base: type, option: str) -> Any:  # noqa: ANN401 - a class known by name only
    """Return the class that nnU-Net finds under that name in `nnunetv2.<package>`.

    Raises:
        UsageError: there is no such class, or it does not derive from `base`.
    """
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = Path(nnunetv2.__path__[0], *package.split("."))
    found = recursive_find_python_class(str(folder), name, f"nnunetv2.{package}")
    if isinstance(found, type) and issubclass(found, base):
        return found
    raise UsageError(
        f"nnU-Net has no {base.__name__} called '{name}'",
        where=f"{option} {name}",
        why=f"it is looked for in nnunetv2/{package.replace('.', '/')}",
        run=f"{option} {base.__name__} is the default",
    )


class _Lines:
    """A text stream that sends its lines to the log."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(None, map(str.rstrip, lines)):
            log.debug(line)
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line is logged when it is complete."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what nnU-Net prints, and its warnings, to the log at level DEBUG."""
    with contextlib.redirect_stdout(_Lines()), warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        log.debug("%s", warning.message)


@contextlib.contextmanager
def temporary_dataset(name: str, dataset_json: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty preprocessed folder for a data set that nnU-Net reads from this `dataset_json`.

    nnU-Net's folders are temporary ones meanwhile: the real ones stay untouched, and it sees the listed cases only.

    Raises:
        EnvironmentProblem: nnU-Net could not read or write a file.
    """
    with tempfile.TemporaryDirectory(prefix="nnssl_plan_") as root:
        folders = {variable: Path(root, variable) for variable in ("nnUNet_raw", "nnUNet_preprocessed")}
        before = {variable: os.environ.get(variable) for variable in folders}
        for folder in folders.values():
            (folder / name).mkdir(parents=True)
        write_json(folders["nnUNet_raw"] / name / "dataset.json", dataset_json)
        os.environ.update({variable: str(folder) for variable, folder in folders.items()})
        try:
            yield folders["nnUNet_preprocessed"] / name
        except OSError as error:
            raise EnvironmentProblem(
                "nnU-Net's planning could not read or write a file",
                where=error.filename or root,
                why=str(error),
                run="free space or check permissions there; export TMPDIR=/a/folder puts temporary files elsewhere",
            ) from error
        finally:
            for variable, value in before.items():
                os.environ.pop(variable)
                if value is not None:
                    os.environ[variable] = value
