"""The peak of a prediction's memory, computed from the sizes of the scans before the first one is predicted."""

from __future__ import annotations

import copy
import logging
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nnssl.errors import OutOfMemory
from nnssl.inference.interpolation import SLAB_BYTES, SPLINE_BORDER
from nnssl.inference.restoring import can_restore, restoring_bytes
from nnssl.inference.tiles import images_a_pass
from nnssl.system.resources import free_memory_bytes, peak_memory_bytes, resident_bytes

if TYPE_CHECKING:
    from nnssl.data.scans import ScanFacts
    from nnssl.inference.predictor import Predictor

log = logging.getLogger("nnssl.predict")

SINGLE, DOUBLE, HALF = 4, 8, 2  # bytes of a number


@dataclass(frozen=True)
class Peaks:
    """Bytes that the stages of one scan take beside what the process holds already.

    Attributes:
        prepare: reading, normalisation and resampling.
        held: the prepared scan, which waits for the network.
        infer: the network, with the logits of the scan.
        export: resampling of the logits, mask and probabilities, with the logits.
    """

    prepare: int
    held: int
    infer: int
    export: int

    @property
    def alone(self) -> int:
        """The peak where the stages follow each other."""
        return max(self.prepare, self.held + self.infer, self.held + self.export)


@dataclass(frozen=True)
class MemoryPlan:
    """What a prediction announces.

    Attributes:
        peak_bytes: the largest memory of the process.
        readers: threads that prepare, 0 where two scans at a time do not fit.
        writers: threads that export, 0 where two scans at a time do not fit.
    """

    peak_bytes: int
    readers: int
    writers: int


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that exist at the same time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes()
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def network_bytes(network: torch.nn.Module, shape: Sequence[int]) -> int:
    """Return the memory of one pass of images (B, C, *S) through a network, beside its weights.

    Nothing is computed. A network that needs values to find its way counts as 0.
    """
    memo: dict[int, Any] = {}  # the copy has tensors without values in the place of the weights
    for each in network.parameters():
        memo[id(each)] = torch.nn.Parameter(torch.empty_like(each, device="meta"), requires_grad=False)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    empty = copy.deepcopy(network, memo).eval()
    image = torch.empty(tuple(shape), device="meta")
    living = _Living()
    try:
        with torch.no_grad(), living:
            empty(image)
    except (NotImplementedError, RuntimeError) as error:
        log.debug("the memory of %s is unknown: %s", type(network).__name__, error)
        return 0
    return living.peak + image.untyped_storage().nbytes()


def peaks_of(predictor: Predictor, scan: ScanFacts, save_probabilities: bool, network: int) -> Peaks:
    """Return the memory that the stages of a scan take with a model.

    Args:
        predictor: the model.
        scan: shape and spacing in the order of the reader. That the scan is cropped is not known yet.
        save_probabilities: whether the probabilities are written.
        network: bytes of a pass of the network.
    """
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    order = plans.transpose_forward
    shape = [scan.shape[axis] for axis in order]
    spacing = [scan.spacing_mm[axis] for axis in order]
    target = [spacing[0], *configuration.spacing][-3:]
    small = [max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, target, strict=True)]
    patch = [1, *configuration.patch_size][-3:]
    padded = math.prod(max(pair) for pair in zip(small, patch, strict=True))
    voxels, fewer, channels = math.prod(shape), math.prod(small), predictor.channels
    heads, folds = predictor.label_manager.num_segmentation_heads, len(predictor.list_of_parameters)
    border = math.prod(n + 2 * SPLINE_BORDER for n in shape)
    sliced = DOUBLE * channels * voxels + 9 * DOUBLE * fewer  # nnU-Net resamples thick slices with tables of places
    resampled = (
        DOUBLE * border + min(SLAB_BYTES, 3 * DOUBLE * max(voxels, fewer))
        if predictor.resamples_in_slabs(spacing, target)
        else max(sliced, DOUBLE * channels * voxels + 2 * DOUBLE * border)
    )
    if shape == small:
        resampled = 0
    held = SINGLE * channels * fewer
    # the scan as read and once more as float; the mask of nonzero voxels and those that fill its holes
    prepare = (2 * SINGLE * channels + 1) * voxels + max(4 * voxels, resampled + held)
    sums = HALF * (heads + 1) * padded
    logits = HALF * heads * fewer
    infer = SINGLE * channels * padded + sums + (logits if folds > 1 else 0) + network
    if can_restore(configuration):
        restored = restoring_bytes(shape, shape, heads, kept=False, streamed=save_probabilities)
    else:
        restored = DOUBLE * heads * fewer + (HALF * heads + DOUBLE) * voxels
        restored += 2 * SINGLE * heads * voxels if save_probabilities else 0
    written = (SINGLE + 4) * voxels  # the mask is read back and compared
    return Peaks(prepare, held, infer, logits + max(restored, written))


def ensemble_peaks(each: Sequence[Peaks], heads: int, voxels: int) -> Peaks:
    """Return the memory of the stages of several models, which share their probabilities as whole arrays.

    Args:
        each: of each model.
        heads: number of classes or regions.
        voxels: of the scan.
    """
    held = sum(peaks.held for peaks in each)
    probs = SINGLE * heads * voxels
    infer = max(max(peaks.infer, peaks.export) for peaks in each) + 3 * probs  # those of a model, of folds, the sum
    return Peaks(held + max(peaks.prepare for peaks in each), held, infer, probs + (SINGLE + 4) * voxels)


def plan_memory(
    predictors: Sequence[Predictor],
    scans: Sequence[ScanFacts],
    save_probabilities: bool,
    readers: int,
    writers: int,
) -> MemoryPlan:
    """Return how many scans are prepared and exported beside the network, and the peak of memory.

    Args:
        predictors: the models, several for an ensemble.
        scans: all scans to predict, at least one.
        save_probabilities: whether the probabilities are written.
        readers: threads that prepare, where memory allows.
        writers: threads that export, where memory allows.

    Raises:
        OutOfMemory: the largest scan alone does not fit; the message names scan and number.
    """
    networks = [_network_bytes(each) for each in predictors]
    found = []
    for scan in {(scan.shape, scan.spacing_mm): scan for scan in reversed(scans)}.values():  # the first of each size
        each = [
            peaks_of(predictor, scan, save_probabilities, network)
            for predictor, network in zip(predictors, networks, strict=True)
        ]
        heads = predictors[0].label_manager.num_segmentation_heads
        found.append((each[0] if len(each) == 1 else ensemble_peaks(each, heads, math.prod(scan.shape)), scan))
    peaks, largest = max(found, key=lambda pair: pair[0].alone)
    others = len(scans) - 1
    ahead, behind = min(readers, others), min(writers, others)
    prepare, held, infer, export = (
        max(getattr(each, name) for each, _ in found) for name in ("prepare", "held", "infer", "export")
    )
    together = max(peaks.alone, ahead * max(prepare, held) + held + infer + behind * (held + export))
    free, own = free_memory_bytes(), resident_bytes()
    fits = free is None or together <= free
    if not fits and free is not None and peaks.alone > free:
        raise OutOfMemory(
            f"the prediction of {largest.case} needs {peaks.alone / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free",
            where=largest.case,
            why=f"{' x '.join(map(str, largest.shape))} voxels, "
            f"{predictors[0].label_manager.num_segmentation_heads} classes",
            run="close other programs, or predict the scan on a machine with more memory",
        )
    added, workers = (together, (readers, writers)) if fits else (peaks.alone, (0, 0))
    plan = MemoryPlan(max(own + added, peak_memory_bytes()), *workers)
    log.info("memory: at most %.2f GB, for %s", plan.peak_bytes / 1e9, largest.case)
    return plan


def _network_bytes(predictor: Predictor) -> int:
    """Return the memory of a pass of the network in this machine, 0 where a GPU holds the pass."""
    return network_bytes(predictor.network, _batch_of(predictor)) if predictor.device.type == "cpu" else 0


def _batch_of(predictor: Predictor) -> tuple[int, ...]:
    patch = tuple(predictor.configuration_manager.patch_size)
    return (images_a_pass(patch, predictor.device), predictor.channels, *patch)
