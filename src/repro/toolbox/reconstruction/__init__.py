"""Compressing a trained network part by part, by what each part puts out on calibration data.

Modules: `units` (a model as parts, and what flows through them), `engine` (going through them, with
the compressed prefix's outputs as inputs and the float model's outputs as targets), `losses`,
`grids` (uniform and power levels) and `variables` (what gradients move so that a weight ends on
such a grid).
"""

from repro.toolbox.reconstruction.engine import (
    Report,
    UnitByUnit,
    batches,
    on_device,
    precise,
    weight_name,
)
from repro.toolbox.reconstruction.grids import Grid, PowerGrid, best_exponent, fit_grid
from repro.toolbox.reconstruction.units import (
    Flow,
    Unit,
    capture,
    following_activation,
    input_matrix,
    output_gradients,
    units_of,
    weight_layers,
)

__all__ = [
    "Flow",
    "Grid",
    "PowerGrid",
    "Report",
    "Unit",
    "UnitByUnit",
    "batches",
    "best_exponent",
    "capture",
    "fit_grid",
    "following_activation",
    "input_matrix",
    "on_device",
    "output_gradients",
    "precise",
    "units_of",
    "weight_layers",
    "weight_name",
]
