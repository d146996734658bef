"""Additional tools, each usable alone and with any optimizer; they import only ``sal_optim.utils``.

Some are terms of a loss: self-modelling, a floor of the rank, channels with budgets. Some train in
another way: in branches, in blocks, by routes, from a memory of prototypes, with corrections. The
others look at a run without changing it: spectra of activations, drift, maps of shift and basins.
Each is imported when it is first asked for; ``import sal_optim`` imports none of them.
"""

from typing import TYPE_CHECKING

from sal_optim.utils.lazy_import import lazy_names

__all__ = [
    "BasinMap",
    "Cascade",
    "CellularMemory",
    "Channels",
    "ConsistencyEdges",
    "Correction",
    "Drift",
    "HealthLine",
    "Node",
    "SelfModel",
    "SpectralMonitor",
    "SpectrumRows",
    "TypedRoutes",
    "ablate",
    "basin_map",
    "halve_lr",
    "horizon",
    "linear_cka",
    "necessity_gap",
    "plot_basins",
    "plot_lineage",
    "plot_shift",
    "plot_spectra",
    "rank_floor_loss",
    "repetition_rate",
    "route_gaps",
    "shift_map",
]

if TYPE_CHECKING:
    from sal_optim.companions.ablation import ablate, necessity_gap
    from sal_optim.companions.basin_plot import plot_basins
    from sal_optim.companions.basins import BasinMap, basin_map
    from sal_optim.companions.cascade import Cascade
    from sal_optim.companions.cells import CellularMemory
    from sal_optim.companions.channels import Channels
    from sal_optim.companions.consistency import ConsistencyEdges
    from sal_optim.companions.correction import Correction
    from sal_optim.companions.drift import Drift, linear_cka
    from sal_optim.companions.health import HealthLine, SpectrumRows
    from sal_optim.companions.lineage import Node, plot_lineage
    from sal_optim.companions.pictures import plot_shift, plot_spectra
    from sal_optim.companions.rank import rank_floor_loss
    from sal_optim.companions.repetition import horizon, repetition_rate
    from sal_optim.companions.routes import TypedRoutes, route_gaps
    from sal_optim.companions.self_model import SelfModel
    from sal_optim.companions.shift import shift_map
    from sal_optim.companions.spectral import SpectralMonitor, halve_lr
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "BasinMap": "basins",
            "Cascade": "cascade",
            "CellularMemory": "cells",
            "Channels": "channels",
            "ConsistencyEdges": "consistency",
            "Correction": "correction",
            "Drift": "drift",
            "HealthLine": "health",
            "Node": "lineage",
            "SelfModel": "self_model",
            "SpectralMonitor": "spectral",
            "SpectrumRows": "health",
            "TypedRoutes": "routes",
            "ablate": "ablation",
            "basin_map": "basins",
            "halve_lr": "spectral",
            "horizon": "repetition",
            "linear_cka": "drift",
            "necessity_gap": "ablation",
            "plot_basins": "basin_plot",
            "plot_lineage": "lineage",
            "plot_shift": "pictures",
            "plot_spectra": "pictures",
            "rank_floor_loss": "rank",
            "repetition_rate": "repetition",
            "route_gaps": "routes",
            "shift_map": "shift",
        },
        globals(),
    )
