"""Finds the scans to predict, and checks all of them before a prediction computes or writes anything."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl.data.raw import RawCase, listed, with_other_ending
from nnssl.errors import DataError
from nnssl.host import companion_file, size_file
from nnssl.system.resources import cpu_count

if TYPE_CHECKING:
    from nnssl.data.scans import ScanFacts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScanToPredict:
    """One scan to predict: its channel files in order, and the path of its mask."""

    name: str
    images: tuple[Path, ...]
    mask: Path

    @property
    def stem(self) -> Path:
        """The path of the mask without file ending, for the files that are saved beside the mask."""
        return self.mask.with_name(self.name)


def cases_in_folder(folder: Path, output: Path, ending: str, files: int = 0) -> list[ScanToPredict]:
    """Return the cases `NAME_0000<ending>`, `NAME_0001<ending>`, … of a folder, sorted by name.

    Args:
        folder: with the scans.
        output: folder of the masks.
        ending: of the files that the model was trained on, with its dot.
        files: image files of a case; with one file `NAME<ending>` is a case, too.

    Raises:
        DataError: the folder does not exist or holds no case, two files are the same case, or an image has another
            ending or no channel number.
    """
    if not folder.is_dir():
        raise DataError("the folder of scans does not exist", where=folder)
    numbered = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    images: dict[str, list[Path]] = {}
    others = []
    for file in sorted(file for file in folder.iterdir() if not file.name.startswith(".")):
        if match := numbered.fullmatch(file.name):
            images.setdefault(match[1], []).append(file)
        else:
            others.append(file)
    plain = [file for file in others if files == 1 and file.name.endswith(ending) and file.is_file()]
    _check_names([file.name for file in others if file not in plain], folder, ending)
    for file in plain:
        name = file.name.removesuffix(ending)
        if name in images:
            why = f"{images[name][0].name}, {file.name}"
            raise DataError(f"two files are the case {name}", where=folder, why=why, run="move one")
        images[name] = [file]
    if not images:
        raise DataError("there are no scans to predict", where=folder, why=f"no file is named CASE_0000{ending}")
    return [ScanToPredict(name, tuple(files), output / f"{name}{ending}") for name, files in sorted(images.items())]


def _check_names(names: Sequence[str], folder: Path, ending: str) -> None:
    """Refuse image files that are no scan for the model: those with another ending, or without a channel number.

    Args:
        names: of the files that are none of the cases, in order.
        folder: with the scans.
        ending: of the files that the model was trained on, with its dot.

    Raises:
        DataError: an image is among the files.
    """
    unnumbered = [name for name in names if name.endswith(ending)]
    foreign = with_other_ending(names, ending)
    whys = []
    if foreign:
        whys.append(f"the model was trained on {ending} files; other endings: {listed(foreign)}")
    if unnumbered:
        whys.append(f"without a channel number: {listed(unnumbered)}")
    if foreign:
        what, run = "have another file ending than the model's scans", f"convert these to {ending}, or move them"
        run += f"; name the others CASE_0000{ending}" if unnumbered else ""
    else:
        what, run = f"are not named CASE_0000{ending}", "rename these, or move them"
    if whys:
        raise DataError(f"{len(foreign or unnumbered)} image(s) {what}", where=folder, why="\n".join(whys), run=run)


def cases_of_list(scans: Sequence[Sequence[Path]], output: Path, ending: str) -> list[ScanToPredict]:
    """Return one case for each list of channel files; `output` is the folder of the masks.

    Raises:
        DataError: a file does not exist or has another ending, or two scans have the same name.
    """
    cases = [case_of_files(files, output, ending) for files in scans]
    twice = sorted(name for name, count in Counter(case.name for case in cases).items() if count > 1)
    if twice:
        raise DataError(f"{len(twice)} name(s) stand for several scans", where=output, why=", ".join(twice[:5]))
    return cases


def case_of_files(files: Sequence[Path], output: Path, ending: str) -> ScanToPredict:
    """Return one case from its channel files in order; `output` is the path or the folder of the mask.

    Raises:
        DataError: a file does not exist, or its ending is not the one that the model was trained on.
    """
    for file in files:
        if not file.is_file():
            raise DataError("the scan does not exist", where=file)
        if not file.name.endswith(ending):
            raise DataError("the scan has another file ending", where=file, why=f"the model was trained on {ending}")
    name = re.sub(r"_\d{4}$", "", files[0].name.removesuffix(ending))
    if output.name.endswith(ending) and not output.is_dir():
        return ScanToPredict(output.name.removesuffix(ending), tuple(files), output)
    return ScanToPredict(name, tuple(files), output / f"{name}{ending}")


def check_cases(cases: Sequence[ScanToPredict], reader_class: type, channels: int) -> list[ScanFacts]:
    """Read every scan once, return their facts, or raise one error with all scans that the model cannot take.

    Raises:
        DataError: a file cannot be read or is cut off, a value is not finite, or the channels of a case lie on several
            grids or are not `channels` in number. The message names case and file.
    """
    from nnssl.data.scans import Expected, ScanTask, examine

    ending = cases[0].mask.name.removeprefix(cases[0].name) if cases else ""
    expected = Expected(reader_class, channels, (), ending)
    tasks = [ScanTask(RawCase(case.name, case.images, None, case.name), "test", False) for case in cases]
    with ThreadPoolExecutor(min(4, cpu_count())) as pool:
        outcomes = list(pool.map(partial(examine, expected=expected), tasks))
    for warning in (text for outcome in outcomes for text in outcome.warnings):
        logger.warning("%s", warning)
    problems = [text for outcome in outcomes for text in outcome.problems]
    if problems:
        raise DataError(
            f"{len(problems)} problem(s) in the scans to predict",
            where=cases[0].images[0].parent,
            why="\n".join(problems[:10]) + ("\n…" if len(problems) > 10 else ""),
        )
    return [outcome.facts for outcome in outcomes if outcome.facts is not None]


def check_voxel_sizes(cases: Sequence[ScanToPredict], trained_on: Sequence[float]) -> None:
    """Refuse 3-D TIFF scans whose voxel size nnU-Net would overlook or invent.

    The voxel size of `CASE_0000.tif` stands in `CASE.json`. Without it nnU-Net takes 1 mm, which is right only for a
    model that was trained on such scans.

    Args:
        cases: the scans.
        trained_on: median spacing of the model's training scans in mm.

    Raises:
        DataError: a scan has no voxel size where the reader looks for it.
    """
    without = [case for case in cases if case.images and not size_file(case.images[0]).is_file()]
    if not without:
        return
    image = without[0].images[0]
    file, beside = size_file(image), companion_file(image)
    if beside is not None and beside.is_file():
        raise DataError(
            f"the voxel sizes of {len(without)} TIFF scan(s) would be overlooked",
            where=image,
            why=f"nnU-Net's reader looks for {file.name}",
            run=f"name the file {file.name}",
        )
    if any(mm != 1 for mm in trained_on):
        raise DataError(
            f"{len(without)} TIFF scan(s) have no voxel size",
            where=image,
            why=f"there is no {file.name}; nnU-Net would take 1 mm, and the model was trained on {list(trained_on)} mm",
            run=f'write {{"spacing": [z, y, x]}} in mm into {file.name}',
        )
