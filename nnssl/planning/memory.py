"""Memory that autograd keeps for the backward pass, measured without running the step that is planned."""

from __future__ import annotations

import contextlib
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
        result: Tensor = self.block.after(x.requires_grad_())
        return result


def relative_activations(
    plan: dict[str, Any], beside: Sequence[str], input_channels: int, num_classes: int, mixed_precision: bool = True
) -> float:
    """Return the activation memory of further networks in units of that of the plan's own, at equal batches.

    The plan's network is measured on `meta` at the planned patch; in mixed precision it keeps half of that. The further
    ones, which may compute in full precision in parts, are measured on a small patch and scaled by the voxels.

    Args:
        plan: one configuration of nnU-Net's plans.
        beside: names in `nnssl.registry.NETWORKS`.
        input_channels: image channels.
        num_classes: output channels.
        mixed_precision: train with it, as on CUDA, or in full precision.
    """
    from nnssl.networks import build_network, plans_entry

    def built(entry: dict[str, Any]) -> nn.Module:
        return build_network(entry, input_channels, num_classes, allow_init=False, deep_supervision=False)

    patch = [int(size) for size in plan["patch_size"]]
    with torch.device("meta"):
        own = saved_bytes(built(plan["architecture"]), torch.empty(1, input_channels, *patch))
    total = 0.0
    for name in beside:
        network = built(plans_entry(name, plan))
        if mixed_precision:
            _recompute(network)
        small = [min(size, PROBE_VOXELS[len(patch)]) for size in patch]
        two, four = (
            saved_bytes(network, torch.zeros(batch, input_channels, *small), mixed_precision) for batch in (2, 4)
        )
        one = (four - two) / 2  # copies of the weights cancel out
        total += one * (torch.Size(patch).numel() / torch.Size(small).numel())
    return total / (own / 2 if mixed_precision else own)


def _recompute(network: nn.Module) -> None:
    """Make blocks that can be recomputed do so, as they do on CUDA."""
    for module in network.modules():
        if hasattr(module, "recompute"):
            setattr(module, "recompute", True)  # noqa: B010 - not an attribute of every module
