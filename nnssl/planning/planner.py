"""nnU-Net's planners, sized for what a semi-supervised trainer holds in memory, and a small fixed plan for CPUs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from nnssl.data.known_scans import known_reader
from nnssl.errors import DataError, UsageError
from nnssl.host import fit_patch, network_of_entry, reader_named
from nnssl.names import CLIP_KEY, SEMI_KEY
from nnssl.registry import METHODS, Method, find_method
from nnssl.system.fact_store import FactStore

STUDENT_BYTES = 20  # bytes for each weight of a trained network: weight, gradient, two moments, half-precision copy
TEACHER_BYTES = 4  # a teacher holds the weight alone
LEAST_GB = 0.25
CPU_FEATURES, CPU_MAX_FEATURES = 16, {2: 256, 3: 128}
CPU_BATCH, CPU_VOXELS = {2: 4, 3: 2}, {2: 30_720, 3: 96_000}
NO_LIMIT_GB = 1e6
CLIP_PERCENTILES = (0.5, 99.5)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizing:
    """Memory of a trainer's step, in addition to nnU-Net's own step, whose memory nnU-Net's planner knows.

    Attributes:
        trainer: class name.
        activations: activation memory in units of nnU-Net's supervised step, without that of `networks`.
        extra_bytes: bytes for each weight of the plan's network that further networks of this size need.
        networks: networks of another architecture whose activations are added.
    """

    trainer: str
    activations: float
    extra_bytes: int
    networks: tuple[str, ...] = ()

    @classmethod
    def of(cls, method: Method) -> Sizing:
        """Return the sizing of a registered method."""
        extra = (method.students - 1) * STUDENT_BYTES + method.teachers * TEACHER_BYTES
        return cls(method.class_name, method.activations, extra, method.networks)

    @classmethod
    def for_trainer(cls, trainer: str | None) -> tuple[Sizing, ...]:
        """Return the sizing of one trainer; for None those of all registered trainers, so that each fits the plan.

        Raises:
            UsageError: nnssl has no such trainer.
        """
        return tuple(map(cls.of, METHODS.values() if trainer is None else [find_method(trainer)]))

    def fixed_gb(self, weights: int) -> float:
        """Return the memory of the further networks in GB, for networks of that many weights."""
        return self.extra_bytes * weights / 1e9


class _Room(NamedTuple):
    """The memory that a trainer leaves for the activations of nnU-Net's own step."""

    trainer: str | None
    divisor: float
    fixed_gb: float
    gb: float


class SizedPlanner:
    """Mixin for a planner of nnU-Net: the memory target becomes what the heaviest trainer leaves.

    `planner_class` sets the class attributes.
    """

    sizings: ClassVar[Sequence[Sizing]]
    tag: ClassVar[str]
    record: ClassVar[Mapping[str, Any]]
    shared_normalisation: ClassVar[bool] = False
    store: ClassVar[FactStore | None] = None

    dataset: Mapping[str, Mapping[str, Any]]
    dataset_json: dict[str, Any]
    dataset_fingerprint: dict[str, Any]
    plans_identifier: str
    UNet_vram_target_GB: float

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.card_gb = self.UNet_vram_target_GB
        self.tightest: _Room | None = None

    def determine_reader_writer(self) -> Any:  # noqa: ANN401 - one of nnU-Net's reader classes
        """Return the reader class that nnU-Net takes for the first case; a known one without opening the case."""
        example = str(next(iter(self.dataset.values()))["images"][0])
        find = super().determine_reader_writer  # type: ignore[misc]
        return reader_named(known_reader(find, self.store, self.dataset_json, example))

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return nnU-Net's name of the preprocessed folder.

        Some planners use the folder of another planner's plans. The tag of the label budget then has to be added.
        """
        stock: str = super().generate_data_identifier(configuration_name)  # type: ignore[misc]
        if stock.startswith(self.plans_identifier):
            return stock
        return stock.removesuffix(f"_{configuration_name}") + f"{self.tag}_{configuration_name}"

    @staticmethod
    def static_estimate_VRAM_usage(  # noqa: N802 - nnU-Net's name
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: Mapping[str, Any],
        arch_kwargs_req_import: Sequence[str],
    ) -> int:
        """Return nnU-Net's estimate of the feature maps' size, without allocating the network."""
        entry = {
            "network_class_name": arch_class_name,
            "arch_kwargs": arch_kwargs,
            "_kw_requires_import": arch_kwargs_req_import,
        }
        network = _network_without_memory(entry, input_channels, output_channels)
        return int(network.compute_conv_feature_map_size(patch_size))

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """Return nnU-Net's order of axes and its inverse; the axis of one-slice scans comes first.

        nnU-Net puts the axis with the largest spacing first. One-slice scans with equal spacings would then be cut
        across their slice.

        Raises:
            DataError: the scans have one voxel on more than one axis.
        """
        spacings, sizes = (np.array(self.dataset_fingerprint[key]) for key in ("spacings", "shapes_after_crop"))
        target = self.determine_fullres_target_spacing()  # type: ignore[attr-defined]
        thin = one_slice_axis(sizes, np.median(np.round(spacings / target * sizes), axis=0))
        forward, backward = super().determine_transpose()  # type: ignore[misc]
        if thin is None or thin == forward[0]:
            return forward, backward
        forward = [thin, *(axis for axis in range(3) if axis != thin)]
        return forward, [forward.index(axis) for axis in range(3)]

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """Return the name of nnU-Net's normalisation for each channel, and whether it leaves the outside at zero.

        The shared normalisation is the same for all channels and images, whatever their modality.
        """
        if self.shared_normalisation:
            channels, _ = self._channels_and_classes()
            return ["ZScoreNormalization"] * channels, [False] * channels
        schemes, masks = super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()  # type: ignore[misc]
        return schemes, masks

    def get_plans_for_configuration(
        self, spacing: Sequence[float], median_shape: Sequence[float], *args: object, **kwargs: object
    ) -> dict[str, Any]:
        """Return nnU-Net's plan of one configuration, for the memory that the heaviest trainer leaves."""
        self.UNet_vram_target_GB = self.card_gb
        plan = self._stock_plan(spacing, median_shape, *args, **kwargs)
        weights = self._weights(plan)
        rooms = [self._room(sizing, plan, weights) for sizing in self.sizings]
        heaviest = min(rooms, key=lambda room: room.gb)
        if heaviest.gb < LEAST_GB:
            needed = LEAST_GB * heaviest.divisor + heaviest.fixed_gb
            raise UsageError(
                f"{self.card_gb:g} GB are too little to train {heaviest.trainer}",
                where=f"-gpu_memory_target {self.card_gb:g}",
                why=f"the trainer's networks need {heaviest.fixed_gb:.2f} GB more than those of a supervised run",
                run=f"-gpu_memory_target {np.ceil(needed):.0f} or more, or -hardware cpu for a small fixed plan",
            )
        if heaviest.gb < self.card_gb:
            self.UNet_vram_target_GB = heaviest.gb
            plan = self._stock_plan(spacing, median_shape, *args, **kwargs)
        self.tightest = min(filter(None, [self.tightest, heaviest]), key=lambda room: room.gb)
        return plan

    def _room(self, sizing: Sizing, plan: dict[str, Any], weights: int) -> _Room:
        divisor, fixed = sizing.activations, sizing.fixed_gb(weights)
        if sizing.networks:
            from nnssl.planning.memory import relative_activations

            divisor += relative_activations(plan, sizing.networks, *self._channels_and_classes())
        return _Room(sizing.trainer, divisor, fixed, (self.card_gb - fixed) / divisor)

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plans as nnU-Net does, with a record of the options and of the memory they are sized for."""
        plans[SEMI_KEY] = {**self.record, **self._sizing_record()}
        super().save_plans(plans)  # type: ignore[misc]

    def _sizing_record(self) -> dict[str, Any]:
        tightest = self.tightest or _Room(None, 1.0, 0.0, self.card_gb)
        return {
            "trainer": tightest.trainer,
            "divisor": round(tightest.divisor, 2),
            "fixed_gb": round(tightest.fixed_gb, 3),
            "gpu_memory_target_gb": self.card_gb,
            "hardware": None,
        }

    def _stock_plan(
        self, spacing: Sequence[float], median_shape: Sequence[float], *args: object, **kwargs: object
    ) -> dict[str, Any]:
        """Return nnU-Net's plan; 3d_lowres rounds its median size, which preprocessing keeps at one voxel or more."""
        at_least_one = np.maximum(median_shape, 1)
        plan: dict[str, Any] = super().get_plans_for_configuration(spacing, at_least_one, *args, **kwargs)  # type: ignore[misc]
        return {**plan, CLIP_KEY: list(CLIP_PERCENTILES)} if self.shared_normalisation else plan

    def _weights(self, plan: Mapping[str, Any]) -> int:
        network = _network_without_memory(plan["architecture"], *self._channels_and_classes())
        return sum(parameter.numel() for parameter in network.parameters())

    def _channels_and_classes(self) -> tuple[int, int]:
        description = self.dataset_json
        return len(description.get("channel_names") or description["modality"]), len(description["labels"])


class CpuPlanner(SizedPlanner):
    """Mixin for nnU-Net's default planner: a small plan that trains on two cores, the same for all trainers."""

    UNet_base_num_features: int
    UNet_featuremap_min_edge_length: int

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.UNet_base_num_features = CPU_FEATURES
        self.UNet_max_features_2d, self.UNet_max_features_3d = CPU_MAX_FEATURES[2], CPU_MAX_FEATURES[3]
        self.lowres_creation_threshold = 0.0
        self.UNet_vram_target_GB = NO_LIMIT_GB

    def get_plans_for_configuration(  # type: ignore[override]
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, int],
    ) -> dict[str, Any]:
        """Return the fixed plan of one configuration."""
        median = median_shape[: len(spacing)]
        patch = cpu_patch(spacing, median, self.UNet_featuremap_min_edge_length)
        plan = self._stock_plan(spacing, patch, data_identifier, approximate_n_voxels_dataset, _cache)
        plan["median_image_size_in_voxels"] = median_shape
        plan["batch_size"] = CPU_BATCH[len(spacing)]
        return plan

    def _sizing_record(self) -> dict[str, Any]:
        return {"trainer": None, "divisor": 1.0, "fixed_gb": 0.0, "gpu_memory_target_gb": None, "hardware": "cpu"}


def _network_without_memory(entry: Mapping[str, Any], input_channels: int, num_classes: int) -> Any:  # noqa: ANN401
    """Return the network of an `architecture` entry on the meta device: shapes without memory."""
    import torch

    with torch.device("meta"):
        return network_of_entry(entry, input_channels, num_classes, allow_init=False)


def one_slice_axis(sizes: Any, median_size: Any) -> int | None:  # noqa: ANN401 - numpy arrays
    """Return the axis along which the labelled scans have one slice, None for volumes.

    Args:
        sizes: voxels of each scan, shape (cases, 3), in the axis order of the files as nnU-Net reads them (z, y, x).
        median_size: median size on the grid of the plans, shape (3,).

    Raises:
        DataError: the scans have one voxel on more than one axis, or each has one slice, but along different axes.
    """
    thin = [axis for axis in range(3) if median_size[axis] < 2]
    if len(thin) > 1:
        raise DataError(
            "the scans are thin on more than one axis",
            where=f"median size {'x'.join(f'{size:g}' for size in median_size)} voxels (z, y, x)",
            why=f"axes with one voxel: {', '.join('zyx'[axis] for axis in thin)}; a slice needs a plane of pixels",
            run="check the spacings in the headers, or choose another -overwrite_target_spacing",
        )
    flat = sizes == 1
    if not thin and flat.any(axis=1).all():
        counts = ", ".join(f"{int(flat[:, axis].sum())} along {'zyx'[axis]}" for axis in range(3))
        raise DataError(
            "the one-slice scans lie on different axes",
            where=f"{len(sizes)} labelled scans",
            why=f"scans with one slice: {counts}; one plan needs the thin axis in one place",
            run="save all scans with the same order of axes, then run the same command again",
        )
    return thin[0] if thin else None


def cpu_patch(spacing: Sequence[float], median_shape: Sequence[float], min_edge: int = 4) -> tuple[int, ...]:
    """Return the patch size of the CPU plan, in voxels.

    The patch is the median shape, scaled down to at most about 96 000 voxels (3-D) or 30 720 pixels (2-D) at the same
    aspect ratio. Each axis is then rounded to what the pooling steps need: up where the patch stays within the limit,
    else to the nearest multiple.

    Args:
        spacing: voxel size of the configuration, 2 or 3 axes.
        median_shape: median image size in that spacing, same axes.
        min_edge: smallest edge of a feature map.
    """
    limit = CPU_VOXELS[len(spacing)]
    scale = min(1.0, (limit / float(np.prod(median_shape))) ** (1 / len(spacing)))
    wanted = [max(1, round(float(size) * scale)) for size in median_shape]
    fitted, divisors = fit_patch(spacing, wanted, min_edge)
    if np.prod(fitted) > limit:
        nearest = [int(m * max(1, round(size / m))) for size, m in zip(wanted, divisors, strict=True)]
        fitted, _ = fit_patch(spacing, nearest, min_edge)
    return tuple(int(size) for size in fitted)


def planner_class(mixin: type[SizedPlanner], base: type, **attributes: object) -> type:
    """Return nnU-Net's planner class `base` under its own name, with `mixin` and its class attributes."""
    return type(base.__name__, (mixin, base), {"__module__": __name__, **attributes})
