"""Forward passes that leave no trace in a network: no running statistics, no dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd


@contextlib.contextmanager
def quiet_passes(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Let networks in training mode keep their batch statistics, but neither update running statistics nor drop values.

    Networks in inference mode predict as always.

    Args:
        networks: the networks; after the `with` block they are as before.
    """
    modules = {module for network in networks for module in network.modules()}
    tracking = [m for m in modules if isinstance(m, _NormBase) and m.track_running_stats]
    dropping = [m for m in modules if isinstance(m, _DropoutNd) and m.training]
    for normalisation in tracking:
        normalisation.track_running_stats = False
    for dropout in dropping:
        dropout.training = False
    try:
        yield
    finally:
        for normalisation in tracking:
            normalisation.track_running_stats = True
        for dropout in dropping:
            dropout.training = True
