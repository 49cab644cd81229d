"""Pyramid Attention Broadcast for video diffusion transformers, as a torch.compile backend.

``torch.compile(model, backend="pab")`` is all that most users need. Paper: Real-Time Video
Generation with Pyramid Attention Broadcast, arXiv 2408.12588.

The public names fall into three groups:

- **use**: ``enable`` compiles a model or a pipeline with a plan that can be exchanged;
  ``precompile`` compiles it for given sizes ahead; ``explain`` and ``stats`` show what is found and
  what is reused; ``generation``, ``RequestScope``, ``step`` and ``reset`` say which step a call is;
  ``Options`` lists the options of the backend.
- **tune**: ``tune`` finds a plan, by running generations or from what ``observe`` measured;
  ``measure_cost`` measures what steps cost.
- **ranks**: ``comm``, ``scaling``, ``splits`` and ``least_traffic`` predict what ranks exchange.

Every name is imported from its module at its first use, so ``import pab_compile`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .auto_split import AutoSplit
    from .calibration.calibrate import Calibration, calibrate, predicted_error
    from .calibration.cost import Cost, measure_cost
    from .calibration.observation import Observation, load_observation
    from .calibration.observe import observe
    from .compile.saved import load_compiled, save_compiled
    from .errors import (
        CalibrationError,
        GradModeError,
        InvariantError,
        ObservationError,
        OptionError,
        PabError,
        PlanError,
        RanksError,
        ShardingError,
        UnsupportedModelError,
    )
    from .forecast.comm_report import CommReport
    from .forecast.ways import Split, Splits
    from .inspect.explain import explain
    from .live.enable import enable
    from .live.gather_weights import gather_weights
    from .live.handle import Handle
    from .live.precompile import precompile
    from .machine import Link, Machine
    from .options import Options
    from .plans.schedule import Schedule
    from .report.comparison import Comparison
    from .report.explanation import Explanation, SiteReport
    from .report.run_stats import RunStats
    from .runtime.last_runs import stats
    from .runtime.request_scope import RequestScope
    from .runtime.scope import generation, reset, step
    from .runtime.weights import weights_changed
    from .traffic.comm import comm
    from .traffic.least_traffic import least_traffic
    from .traffic.scaling import Scaling, scaling
    from .traffic.splits import splits
    from .traffic.wire_cost import wire_cost
    from .tuning.comparing import compare
    from .tuning.tune import tune
    from .tuning.tuned import Tuned

    __version__: str

_MODULES = {
    # use
    "enable": "live.enable",
    "Handle": "live.handle",
    "precompile": "live.precompile",
    "save_compiled": "compile.saved",
    "load_compiled": "compile.saved",
    "explain": "inspect.explain",
    "stats": "runtime.last_runs",
    "generation": "runtime.scope",
    "RequestScope": "runtime.request_scope",
    "step": "runtime.scope",
    "reset": "runtime.scope",
    "weights_changed": "runtime.weights",
    "Options": "options",
    "Explanation": "report.explanation",
    "SiteReport": "report.explanation",
    "RunStats": "report.run_stats",
    "Schedule": "plans.schedule",
    "PabError": "errors",
    "GradModeError": "errors",
    "InvariantError": "errors",
    "OptionError": "errors",
    "PlanError": "errors",
    "UnsupportedModelError": "errors",
    # tune
    "tune": "tuning.tune",
    "Tuned": "tuning.tuned",
    "compare": "tuning.comparing",
    "Comparison": "report.comparison",
    "observe": "calibration.observe",
    "Observation": "calibration.observation",
    "load_observation": "calibration.observation",
    "calibrate": "calibration.calibrate",
    "Calibration": "calibration.calibrate",
    "predicted_error": "calibration.calibrate",
    "measure_cost": "calibration.cost",
    "Cost": "calibration.cost",
    "CalibrationError": "errors",
    "ObservationError": "errors",
    # ranks
    "comm": "traffic.comm",
    "CommReport": "forecast.comm_report",
    "least_traffic": "traffic.least_traffic",
    "scaling": "traffic.scaling",
    "Scaling": "traffic.scaling",
    "Machine": "machine",
    "Link": "machine",
    "AutoSplit": "auto_split",
    "splits": "traffic.splits",
    "Splits": "forecast.ways",
    "Split": "forecast.ways",
    "wire_cost": "traffic.wire_cost",
    "gather_weights": "live.gather_weights",
    "RanksError": "errors",
    "ShardingError": "errors",
}

__all__ = [
    # use
    "enable",
    "Handle",
    "precompile",
    "save_compiled",
    "load_compiled",
    "explain",
    "stats",
    "generation",
    "RequestScope",
    "step",
    "reset",
    "weights_changed",
    "Options",
    "Explanation",
    "SiteReport",
    "RunStats",
    "Schedule",
    "PabError",
    "GradModeError",
    "InvariantError",
    "OptionError",
    "PlanError",
    "UnsupportedModelError",
    # tune
    "tune",
    "Tuned",
    "compare",
    "Comparison",
    "observe",
    "Observation",
    "load_observation",
    "calibrate",
    "Calibration",
    "predicted_error",
    "measure_cost",
    "Cost",
    "CalibrationError",
    "ObservationError",
    # ranks
    "comm",
    "CommReport",
    "least_traffic",
    "scaling",
    "Scaling",
    "Machine",
    "Link",
    "AutoSplit",
    "splits",
    "Splits",
    "Split",
    "wire_cost",
    "gather_weights",
    "RanksError",
    "ShardingError",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("pab_compile")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__, "__version__"})
