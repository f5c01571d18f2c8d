"""Checkpoint files: written in one piece, loaded without unrestricted pickle.

They hold tensors, numbers, strings, lists, tuples and dicts only, so that `torch.load(weights_only=True)` reads them.
"""

from __future__ import annotations

import logging
import pickle
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.system.files import replacing
from nnssl.training.settings import RunSettings

KEY = "nnssl_semi"  # everything of ours in a checkpoint or in the plans stands under this key
log = logging.getLogger(__name__)


def plain(value: Any) -> Any:  # noqa: ANN401 - any nesting of values
    """Return `value` with numpy scalars, arrays, paths and devices turned into plain numbers, lists and strings."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor):
        return value
    return str(value)


def save(checkpoint: Mapping[str, Any], path: Path, *, keep_previous: bool = False) -> None:
    """Write a checkpoint: to a temporary file, synced to disk, then renamed to `path`.

    Args:
        checkpoint: the content.
        path: where it stands in the end.
        keep_previous: move what stood there to `previous(path)` first, so that the last two are kept.

    Raises:
        EnvironmentProblem: the folder cannot be written, or the disk is full.
    """
    with replacing(path) as temporary:
        try:
            torch.save(dict(checkpoint), temporary)
        except RuntimeError as error:  # torch reports a full disk as a RuntimeError of its zip writer
            raise OSError(str(error).splitlines()[0]) from error
        if keep_previous and path.exists():
            path.replace(previous(path))


def previous(path: Path) -> Path:
    """Return where the checkpoint before `path` is kept."""
    return path.with_name(path.name.replace("latest", "previous"))


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint of nnssl or of stock nnU-Net on the CPU; nothing that is stored in it is ever run.

    Only tensors, plain values and, for stock nnU-Net, which keeps them in its log, numpy scalars are accepted.

    Raises:
        EnvironmentProblem: the file is missing or truncated, is no checkpoint, or holds other objects.
    """
    if not path.is_file():
        raise EnvironmentProblem("there is no such checkpoint", where=path)
    try:
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            with torch.serialization.safe_globals(_numpy_scalars()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = str(error).partition("\n")[0].partition(". ")[0]  # what torch advises after it is not for users
        raise EnvironmentProblem(
            "a checkpoint cannot be read",
            where=path,
            why=f"it holds more than numbers and text: {refused[1]}"
            if refused
            else f"it is truncated or no checkpoint ({reason or type(error).__name__})",
            run="copy it again, continue the training with --c, or choose another checkpoint",
        ) from error
    return content


def _numpy_scalars() -> list[Any]:
    """Return what unpickling a numpy number needs, under the names of numpy 1 and 2."""
    rebuild = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
    names = [(rebuild, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *kinds]


def load_newest(latest: Path) -> dict[str, Any]:
    """Return `latest`, or the checkpoint before it where `latest` is missing or damaged.

    Raises:
        EnvironmentProblem: neither can be read.
    """
    try:
        return load(latest)
    except EnvironmentProblem as error:
        if not previous(latest).is_file():
            raise
        log.warning("%s; continuing from %s", error.what, previous(latest).name)
        return load(previous(latest))


def of_run(checkpoint: Mapping[str, Any], trainer: str, run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what nnssl keeps in a checkpoint, if it is one of this run.

    Args:
        checkpoint: the content.
        trainer: class name of the trainer that would continue it.
        run: its settings.
        folder: where the checkpoint lies, for the message.

    Raises:
        EnvironmentProblem: it belongs to another method.
        UsageError: it belongs to a run with other settings.
    """
    ours: dict[str, Any] = checkpoint.get(KEY, {})
    if ours.get("trainer") != trainer:
        raise EnvironmentProblem(
            f"this checkpoint was not written by {trainer}",
            where=folder,
            why=f"it names {ours.get('trainer', 'no trainer of nnssl')}",
        )
    stored = RunSettings().to_dict() | ours["run"]  # an earlier version does not know every setting
    stored["num_iterations"] = max(stored["num_iterations"], run["num_iterations"])  # a run can become longer
    if stored != run:
        raise UsageError(
            "this checkpoint belongs to a run with other settings",
            where=folder,
            why=f"there: {ours['run']}\nhere:  {run}",
            run="continue with the settings of the first command, or start another run with -tag",
        )
    return ours


def rng_state() -> dict[str, Any]:
    """Return the states of python's, numpy's and torch's global generators as plain values."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *plain(rest)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Set the generators to what `rng_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for device, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, device)
