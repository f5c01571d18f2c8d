"""Memory that autograd keeps for the backward pass, measured without running the step that is planned."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

PROBE_VOXELS = {2: 64, 3: 32}  # side of the patch on which a network is measured, by number of axes


def saved_bytes(network: nn.Module, image: Tensor, mixed_precision: bool = False) -> int:
    """Return the bytes that one forward pass keeps for its backward pass, without the weights.

    Blocks with an attribute `recompute` that is set count with their inputs, and the largest of them in full.

    Args:
        network: any network, in training mode, on the device of the image; `meta` costs neither memory nor time.
        image: (B, C, *S).
        mixed_precision: as under autocast, here with bfloat16 (not on `meta`).
    """
    storages: dict[int, torch.UntypedStorage] = {}
    blocks: list[tuple[nn.Module, Tensor]] = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that its address is not given to another one
        return tensor

    def note_input(block: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        blocks.append((block, note(arguments[0].detach())))

    hooks = [m.register_forward_pre_hook(note_input) for m in network.modules() if getattr(m, "recompute", False)]
    precision = torch.autocast(image.device.type, torch.bfloat16) if mixed_precision else contextlib.nullcontext()
    with saved_tensors_hooks(note, lambda tensor: tensor), precision:
        network(image)
    for hook in hooks:
        hook.remove()
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept = sum(storage.nbytes() for address, storage in storages.items() if address not in weights)
    return kept + max((saved_bytes(_Kept(block), x, mixed_precision) for block, x in blocks), default=0)


class _Kept(nn.Module):
    """A block that would be recomputed, without that."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block: Any = block

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block.transform(x.requires_grad_())
        return result


def relative_activations(
    plan: dict[str, Any], beside: Sequence[str], input_channels: int, num_classes: int, mixed_precision: bool = True
) -> float:
    """Return the activation memory of further networks in units of that of the plan's own, at equal batches.

    Networks are measured on `meta` at the planned patch; in mixed precision they keep half of that (somewhat more with
    much dropout). Those that can recompute blocks calculate in full precision in parts; they are measured on a small
    patch and scaled by the voxels.

    Args:
        plan: one configuration of nnU-Net's plans.
        beside: names in `nnssl.registry.NETWORKS`; one counts as often as it stands there.
        input_channels: image channels.
        num_classes: output channels.
        mixed_precision: train with it, as on CUDA, or in full precision.
    """
    from nnssl.networks import plans_entry

    patch = [int(size) for size in plan["patch_size"]]
    steps = [math.prod(axis) for axis in zip(*plan["architecture"]["arch_kwargs"]["strides"], strict=True)]
    small = [min(size, max(PROBE_VOXELS[len(patch)], step)) for size, step in zip(patch, steps, strict=True)]

    def at_planned_patch(entry: dict[str, Any]) -> float:
        return _kept_a_patch(
            json.dumps(entry), input_channels, num_classes, tuple(patch), tuple(small), mixed_precision
        )

    total = sum(count * at_planned_patch(plans_entry(name, plan)) for name, count in Counter(beside).items())
    return total / at_planned_patch(plan["architecture"])


@functools.cache
def _kept_a_patch(
    entry: str, input_channels: int, num_classes: int, patch: Sequence[int], small: Sequence[int], mixed_precision: bool
) -> float:
    """Return the bytes that the network of an `architecture` entry keeps for one patch; several trainers ask alike."""
    from nnssl.networks import build_network

    def built() -> nn.Module:
        return build_network(json.loads(entry), input_channels, num_classes, allow_init=False, deep_supervision=False)

    with torch.device("meta"):
        network = built()
        if not any(hasattr(module, "recompute") for module in network.modules()):
            kept = saved_bytes(network, torch.empty(2, input_channels, *patch)) / 2
            return kept / 2 if mixed_precision else kept
    network = built()
    for module in network.modules():
        if mixed_precision and hasattr(module, "recompute"):
            setattr(module, "recompute", True)  # noqa: B010 - not an attribute of every module
    one, two = (saved_bytes(network, torch.zeros(batch, input_channels, *small), mixed_precision) for batch in (1, 2))
    return (two - one) * math.prod(patch) / math.prod(small)  # copies of the weights cancel out
