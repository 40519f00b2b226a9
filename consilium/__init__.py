"""consilium: sites learn from each other by soft labels on public rows; data and weights stay where they are.

The names that users import; everything behind them is loaded when it is first used.

    >>> import consilium
    >>> config = consilium.parse_config({"data": {"name": "digits"}}, base=".")
    >>> config.federation.rounds
    10
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillation.export import Student as Student
    from distillation.export import load_student as load_student
    from simulations.config import ExperimentConfig as ExperimentConfig
    from simulations.config import load_config as load_config
    from simulations.config import parse_config as parse_config
    from simulations.experiment import run_experiment as run_experiment

__version__ = version("consilium")

_HOMES = {
    "ExperimentConfig": "simulations.config",
    "Student": "distillation.export",
    "load_config": "simulations.config",
    "load_student": "distillation.export",
    "parse_config": "simulations.config",
    "run_experiment": "simulations.experiment",
}
__all__ = ["ExperimentConfig", "Student", "load_config", "load_student", "parse_config", "run_experiment"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'consilium' has no attribute {name!r}; it has: {', '.join(sorted(_HOMES))}")
    return getattr(import_module(_HOMES[name]), name)
