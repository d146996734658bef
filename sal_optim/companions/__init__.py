"""Additional tools, each usable alone and with any optimizer; they import only ``sal_optim.utils``.

Some are terms of a loss: self-modelling, a floor of the rank, channels with budgets. Some train in
another way: in branches, in blocks, by routes, from a memory of prototypes, with corrections. The
others look at a run without changing it: spectra of activations, drift, maps of shift and basins.
Each is imported when it is first asked for; ``import sal_optim`` imports none of them.
"""

from typing import TYPE_CHECKING

from sal_optim.utils.lazy_import import lazy_names

if TYPE_CHECKING:
    from sal_optim.companions.ablation import ablate as ablate
    from sal_optim.companions.ablation import necessity_gap as necessity_gap
    from sal_optim.companions.basin_plot import plot_basins as plot_basins
    from sal_optim.companions.basins import BasinMap as BasinMap
    from sal_optim.companions.basins import basin_map as basin_map
    from sal_optim.companions.cascade import Cascade as Cascade
    from sal_optim.companions.cells import CellularMemory as CellularMemory
    from sal_optim.companions.channels import Channels as Channels
    from sal_optim.companions.consistency import ConsistencyEdges as ConsistencyEdges
    from sal_optim.companions.correction import Correction as Correction
    from sal_optim.companions.drift import Drift as Drift
    from sal_optim.companions.drift import linear_cka as linear_cka
    from sal_optim.companions.health import HealthLine as HealthLine
    from sal_optim.companions.health import SpectrumRows as SpectrumRows
    from sal_optim.companions.lineage import Node as Node
    from sal_optim.companions.lineage import plot_lineage as plot_lineage
    from sal_optim.companions.pictures import plot_shift as plot_shift
    from sal_optim.companions.pictures import plot_spectra as plot_spectra
    from sal_optim.companions.rank import rank_floor_loss as rank_floor_loss
    from sal_optim.companions.repetition import horizon as horizon
    from sal_optim.companions.repetition import repetition_rate as repetition_rate
    from sal_optim.companions.routes import TypedRoutes as TypedRoutes
    from sal_optim.companions.routes import route_gaps as route_gaps
    from sal_optim.companions.self_model import SelfModel as SelfModel
    from sal_optim.companions.shift import shift_map as shift_map
    from sal_optim.companions.spectral import SpectralMonitor as SpectralMonitor
    from sal_optim.companions.spectral import halve_lr as halve_lr
else:
    _NAMES = {
        "ablation": ["ablate", "necessity_gap"],
        "basin_plot": ["plot_basins"],
        "basins": ["BasinMap", "basin_map"],
        "cascade": ["Cascade"],
        "cells": ["CellularMemory"],
        "channels": ["Channels"],
        "consistency": ["ConsistencyEdges"],
        "correction": ["Correction"],
        "drift": ["Drift", "linear_cka"],
        "health": ["HealthLine", "SpectrumRows"],
        "lineage": ["Node", "plot_lineage"],
        "pictures": ["plot_shift", "plot_spectra"],
        "rank": ["rank_floor_loss"],
        "repetition": ["horizon", "repetition_rate"],
        "routes": ["TypedRoutes", "route_gaps"],
        "self_model": ["SelfModel"],
        "shift": ["shift_map"],
        "spectral": ["SpectralMonitor", "halve_lr"],
    }
    __all__ = sorted(name for names in _NAMES.values() for name in names)
    __getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
