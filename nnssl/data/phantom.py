"""A synthetic MRI-like data set with labelled, unlabelled and test scans, to try every command within minutes.

Every scan shows a body with three labelled structures: a winding tube, a shell around a bright core that is open at one
end, and a small irregular nodule beside the tube. Other structures without a label share the same intensities, and
contrast, bias field, texture and noise vary from scan to scan. Only shape and place therefore identify a structure.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnssl.data.scanners import SCANNERS, Scanner, reimage
from nnssl.errors import EnvironmentProblem, NnsslError, UsageError
from nnssl.names import (
    CASES_KEY,
    DATASET_JSON,
    FILE_ENDING_KEY,
    IMAGES_TR,
    IMAGES_TS,
    IMAGES_UN,
    LABELS_KEY,
    LABELS_TR,
    LABELS_TS,
)
from nnssl.system.files import read_json, write_json

LABELS = {"background": 0, "tube": 1, "shell": 2, "nodule": 3}
SHAPE = (40, 48, 48)
SMALLEST_AXIS = 16
SPACING_MM = (2.0, 1.25, 1.25)
VARIATION = 0.1
FOLLOW_UP_EVERY = 6
CREATED_BY = "nnssl_phantom"

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class PhantomScan:
    """One synthetic scan.

    Attributes:
        image: (D, H, W), int16, intensities in arbitrary units from 0.
        label: (D, H, W), uint8, the values of `LABELS`.
        spacing_mm: voxel size, in the order of the axes.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class _PhantomCase:
    name: str
    patient: str
    images: str
    labels: str
    seeds: tuple[list[int], list[int]]
    scanner: Scanner | None = None


def write_phantom(  # noqa: PLR0913 - independent, named settings of one data set
    folder_root: Path,
    dataset_id: int,
    *,
    name: str = "Phantom",
    labelled: int = 6,
    unlabelled: int = 24,
    test: int = 8,
    shape: tuple[int, int, int] = SHAPE,
    variety: float = 1.0,
    seed: int = 0,
    overwrite: bool = False,
    domains: int = 1,
) -> Path:
    """Write a synthetic data set in nnU-Net's raw layout with `imagesUn`, and return its folder.

    The function writes to a temporary folder beside the data set and renames this folder at the end. The voxels of a
    labelled or test case depend on `seed`, `shape` and the number of the case only, not on the number of cases. Every
    sixth unlabelled scan is a second scan of a labelled patient, as `cases` in dataset.json says.

    Args:
        folder_root: nnU-Net's raw folder (`nnUNet_raw`); a missing folder is created.
        dataset_id: 1 to 999.
        name: letters, digits, `-` and `_`.
        labelled: number of labelled scans of each domain, at least 1.
        unlabelled: number of scans of each domain without a label; 0 writes no `imagesUn`.
        test: number of test scans of each domain with labels in `labelsTs`; 0 writes no `imagesTs`.
        shape: mean size in voxels (depth, height, width), each at least 16; the size of a scan varies by 10 %.
        variety: how much more contrast, bias field and noise vary in unlabelled and test scans than in labelled scans,
            as in a lab that labelled the scans of one scanner; at least 0.
        seed: 0 or more.
        overwrite: replace an earlier phantom of the same id and name.
        domains: number of scanners, 1 to 4. With 2 and more, one of the scanners A, B, C and D images each patient, as
            `nnssl.data.scanners` says; `cases` in dataset.json names the scanner as the domain.

    Raises:
        UsageError: a setting is out of range, the id is taken, or the folder exists.
        EnvironmentProblem: the folder cannot be written.
    """
    _check_settings(dataset_id, name, (labelled, unlabelled, test, seed, domains), shape, variety)
    folder = folder_root / f"Dataset{dataset_id:03d}_{name}"
    _check_free(folder, dataset_id, overwrite)
    cases = _cases((labelled, unlabelled, test), seed, domains)
    dataset_json = {
        "name": name,
        "description": "synthetic scans: a tube, a shell around a core, and a nodule",
        "channel_names": {"0": "MRI"},
        LABELS_KEY: LABELS,
        "numTraining": labelled * domains,
        FILE_ENDING_KEY: ".nii.gz",
        "created_by": CREATED_BY,
        "seed": seed,
        CASES_KEY: {
            case.name: {"patient": case.patient} | ({"domain": case.scanner.name} if case.scanner else {})
            for case in cases
        },
    }

    def fill(temporary: Path) -> None:
        for case in cases:
            _write_case(temporary, case, shape, variety)
        write_json(temporary / DATASET_JSON, dataset_json)

    try:
        _replace_folder(folder, fill)
    except OSError as error:
        raise EnvironmentProblem(
            "the data set could not be written",
            where=folder,
            why=str(error),
            run="free space, or choose a folder that can be written, then run the same command again",
        ) from error
    return folder


def phantom_scan(
    anatomy_seed: int | list[int],
    appearance_seed: int | list[int],
    shape: tuple[int, int, int] = SHAPE,
    variety: float = 1.0,
) -> PhantomScan:
    """Return one synthetic scan.

    Args:
        anatomy_seed: decides the shapes; two scans of a patient share it.
        appearance_seed: decides position, size, spacing, contrast, bias field, texture and noise.
        shape: mean size in voxels (D, H, W); the size of the scan varies by 10 % around the mean.
        variety: factor of the deviations of contrast, bias field and noise.
    """
    look = np.random.default_rng(appearance_seed)
    size = tuple(max(SMALLEST_AXIS, round(n * look.uniform(1 - VARIATION, 1 + VARIATION))) for n in shape)
    through, in_plane = look.uniform(1 - VARIATION, 1 + VARIATION, 2)
    spacing = [
        round(float(mm * factor), 4) for mm, factor in zip(SPACING_MM, (through, in_plane, in_plane), strict=True)
    ]
    tissue, label = _anatomy(np.random.default_rng(anatomy_seed), _warped_grid(look, size))
    image = _appearance(look, tissue, variety)
    return PhantomScan(image, label, (spacing[0], spacing[1], spacing[2]))


def _smooth(rng: Generator, size: tuple[int, ...], wavelength: float) -> FloatArray:
    """Return noise of mean 0 and standard deviation 1, smooth over `wavelength` times the size of the volume."""
    sigma = [max(0.5, wavelength * n) for n in size]
    noise = gaussian_filter(rng.standard_normal(size), sigma, mode="reflect")
    return np.asarray((noise - noise.mean()) / noise.std())


def _warped_grid(rng: Generator, size: tuple[int, ...]) -> FloatArray:
    """Return coordinates (3, D, H, W), about -1 to 1, after a small rotation, scaling, shift and smooth deformation."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij"))
    angles = rng.normal(0, 0.12, 3)
    for axis, angle in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        cosine, sine = np.cos(angle), np.sin(angle)
        grid[[first, second]] = (
            cosine * grid[first] - sine * grid[second],
            sine * grid[first] + cosine * grid[second],
        )
    grid *= rng.uniform(0.92, 1.12, (3, 1, 1, 1))
    grid += rng.normal(0, 0.05, (3, 1, 1, 1))
    return grid + 0.05 * np.stack([_smooth(rng, size, 0.12) for _ in range(3)])


def _radius(grid: FloatArray, centre: FloatArray, radii: FloatArray) -> FloatArray:
    """Return the distance from `centre` in units of `radii`: 1 on the surface of that ellipsoid."""
    offset = (grid - centre.reshape(3, 1, 1, 1)) / radii.reshape(3, 1, 1, 1)
    return np.asarray(np.sqrt((offset**2).sum(axis=0)))


def _tube(rng: Generator, grid: FloatArray, centre: tuple[float, float], radius: float) -> Mask:
    """Return a winding tube along the first axis, of varying thickness and with both ends inside the body."""
    z, y, x = grid
    start, end = rng.uniform(-0.8, -0.6), rng.uniform(0.55, 0.75)
    swing, phase, turns = rng.uniform(0.08, 0.2), rng.uniform(0, 2 * np.pi), rng.uniform(1.5, 3.0)
    centre_y = centre[0] + rng.normal(0, 0.05) + swing * np.sin(turns * z + phase)
    centre_x = centre[1] + rng.normal(0, 0.05) + swing * np.cos(turns * z + phase)
    thickness = radius * rng.uniform(0.8, 1.25) * (1 + 0.3 * np.sin(4 * z + rng.uniform(0, 2 * np.pi)))
    ends = np.clip((z - start) / 0.2, 0, 1) * np.clip((end - z) / 0.2, 0, 1)
    return np.asarray(np.hypot(y - centre_y, x - centre_x) < thickness * np.sqrt(ends))


def _anatomy(rng: Generator, grid: FloatArray) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return tissue indices into `_CONTRAST` and labels, both (D, H, W)."""
    size = grid.shape[1:]
    bumps = rng.spawn(1)[0]  # its draws depend on the size of the scan; the draws of `rng` must not
    body = _radius(grid, np.zeros(3), np.array([1.05, 0.88, 0.92])) < 1
    tissue = np.where(body, _BODY, _AIR).astype(np.uint8)
    _add_distractors(rng, grid, tissue)

    centre = np.array([0.0, 0.08, -0.38]) + rng.normal(0, 0.06, 3)
    outer = np.array([0.58, 0.43, 0.4]) * rng.uniform(0.85, 1.1) * rng.uniform(0.9, 1.1, 3)
    shell_radius = _radius(grid, centre, outer) + 0.05 * _smooth(bumps, size, 0.08)
    inner = rng.uniform(0.5, 0.68)
    opening = (grid[0] - centre[0]) / outer[0] > rng.uniform(0.4, 0.7)
    core = (shell_radius < inner) & body
    shell = (shell_radius < 1) & ~core & ~opening & body
    tube = _tube(rng, grid, (-0.42, 0.32), 0.27) & body & ~shell & ~core
    place = np.array([rng.uniform(-0.3, 0.3), 0.4, 0.44]) + rng.normal(0, 0.06, 3)
    blob = _radius(grid, place, rng.uniform(0.28, 0.4, 3)) + 0.1 * _smooth(bumps, size, 0.06)
    nodule = (blob < 1) & body & ~shell & ~core & ~tube

    label = np.zeros(size, np.uint8)
    tissue[core] = _CORE
    for mask, kind, name in ((tube, _TUBE, "tube"), (shell, _SHELL, "shell"), (nodule, _NODULE, "nodule")):
        tissue[mask], label[mask] = kind, LABELS[name]
    return tissue, label


def _add_distractors(rng: Generator, grid: FloatArray, tissue: NDArray[np.uint8]) -> None:
    """Put a thin tube, a solid ball and blobs without a label into the body, made of the labelled tissues."""
    body = tissue == _BODY
    tissue[_tube(rng, grid, (0.65, 0.0), 0.09) & body] = _TUBE
    ball = np.array([0.5, -0.35, -0.2]) + rng.normal(0, 0.1, 3)
    tissue[(_radius(grid, ball, rng.uniform(0.15, 0.25, 3)) < 1) & body] = _SHELL
    for _ in range(rng.integers(2, 5)):
        place = rng.uniform(-0.6, 0.6, 3)
        tissue[(_radius(grid, place, rng.uniform(0.08, 0.16, 3)) < 1) & body] = _NODULE


_AIR, _BODY, _TUBE, _SHELL, _CORE, _NODULE = range(6)
_CONTRAST = np.array([0.02, 0.5, 0.75, 0.3, 0.65, 0.15])
_CONTRAST_SPREAD = np.array([0.01, 0.04, 0.05, 0.05, 0.05, 0.04])


def _appearance(rng: Generator, tissue: NDArray[np.uint8], variety: float) -> NDArray[np.int16]:
    """Return the intensities of a tissue map: contrast, texture, partial volume, bias field, Rician noise, scale."""
    size = tissue.shape
    signal = rng.normal(_CONTRAST, variety * _CONTRAST_SPREAD).clip(0)[tissue]
    texture = 0.04 * _smooth(rng, size, 0.03) + 0.03 * _smooth(rng, size, 0.1)
    signal = signal + np.where(tissue == _AIR, 0, texture)
    signal = gaussian_filter(signal, rng.uniform(0.4, 0.7))
    signal *= np.exp(variety * rng.uniform(0.1, 0.25) * _smooth(rng, size, 0.3))
    noise = variety * rng.uniform(0.03, 0.06)
    real, imaginary = signal + noise * rng.standard_normal(size), noise * rng.standard_normal(size)
    return np.asarray(np.hypot(real, imaginary) * rng.uniform(500, 1500)).round().astype(np.int16)


def _cases(counts: tuple[int, int, int], seed: int, domains: int) -> list[_PhantomCase]:
    labelled, unlabelled, test = (count * domains for count in counts)
    cases = []
    for kind, (word, count, images, labels) in enumerate(
        (
            ("labelled", labelled, IMAGES_TR, LABELS_TR),
            ("unlabelled", unlabelled, IMAGES_UN, ""),
            ("test", test, IMAGES_TS, LABELS_TS),
        )
    ):
        for number in range(1, count + 1):
            owner, patient = kind, number
            if word == "unlabelled" and number % FOLLOW_UP_EVERY == 0:
                owner, patient = 0, (number // FOLLOW_UP_EVERY - 1) % labelled + 1
            seeds = ([seed, owner, patient], [seed, kind, number, 1])
            scanner = SCANNERS[(patient - 1) % domains] if domains > 1 else None
            names = f"{word}_{number:03d}", f"patient_{'lut'[owner]}{patient:03d}"
            cases.append(_PhantomCase(*names, images, labels, seeds, scanner))
    return cases


def _write_case(folder: Path, case: _PhantomCase, shape: tuple[int, int, int], variety: float) -> None:
    scan = phantom_scan(*case.seeds, shape, 1.0 if case.images == IMAGES_TR else variety)
    image, label, spacing = scan.image, scan.label, scan.spacing_mm
    if case.scanner:
        image, label, spacing = reimage(image, label, spacing, case.scanner, np.random.default_rng([*case.seeds[1], 2]))
    _write_volume(folder / case.images / f"{case.name}_0000.nii.gz", image, spacing)
    if case.labels:
        _write_volume(folder / case.labels / f"{case.name}.nii.gz", label, spacing)


def _write_volume(
    path: Path, volume: NDArray[np.int16] | NDArray[np.uint8], spacing_mm: tuple[float, float, float]
) -> None:
    import nibabel

    path.parent.mkdir(exist_ok=True)
    image = nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([*spacing_mm[::-1], 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _check_settings(
    dataset_id: int, name: str, numbers: tuple[int, int, int, int, int], shape: tuple[int, int, int], variety: float
) -> None:
    labelled, unlabelled, test, seed, domains = numbers
    rules = (
        (1 <= dataset_id <= 999, f"-d {dataset_id}", "the id is 1 to 999"),
        (re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None, f"-n {name}", "the name is letters, digits, - and _"),
        (labelled >= 1, f"-labelled {labelled}", "at least one labelled scan is needed"),
        (unlabelled >= 0, f"-unlabelled {unlabelled}", "the number of scans is 0 or more"),
        (test >= 0, f"-test {test}", "the number of scans is 0 or more"),
        (seed >= 0, f"-seed {seed}", "the seed is 0 or more"),
        (1 <= domains <= len(SCANNERS), f"-domains {domains}", f"there are 1 to {len(SCANNERS)} scanners"),
        (0 <= variety < np.inf, f"-variety {variety}", "the variety is a number that is 0 or more"),
        (
            len(shape) == 3 and min(shape) >= SMALLEST_AXIS,
            f"-shape {' '.join(map(str, shape))}",
            f"three axes of at least {SMALLEST_AXIS} voxels hold the structures",
        ),
    )
    for allowed, where, why in rules:
        if not allowed:
            raise UsageError("a setting of the phantom is out of range", where=where, why=why)


def _check_free(folder: Path, dataset_id: int, overwrite: bool) -> None:
    others = sorted(path.name for path in folder.parent.glob(f"Dataset{dataset_id:03d}_*") if path != folder)
    if others:
        raise UsageError(
            f"the id {dataset_id} is taken by {', '.join(others)}",
            where=folder.parent,
            why="nnU-Net finds a data set by its id",
            run="choose another id with -d",
        )
    if not folder.exists():
        return
    if not overwrite:
        raise UsageError(
            f"{folder.name} exists",
            where=folder,
            run="add --overwrite to replace the folder, or choose another id with -d",
        )
    try:
        is_phantom = read_json(folder / DATASET_JSON).get("created_by") == CREATED_BY
    except (NnsslError, AttributeError):
        is_phantom = False
    if not is_phantom:
        raise UsageError(
            f"{folder.name} is not a phantom",
            where=folder,
            why=f"--overwrite replaces only data sets that {CREATED_BY} wrote",
            run="choose another id with -d",
        )


def _replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary folder and rename this to `folder`; the old folder is deleted last."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        fresh, old = work / "new", work / "old"
        fresh.mkdir()
        fill(fresh)
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
