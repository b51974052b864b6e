"""Federated learning in which each participant holds, trains and sends a part of the model.

Importing the package is quick: the first use of a public name loads its module, and torch with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Type checkers read these lines, the interpreter reads _MODULE_OF; a test keeps them equal.
    from partwise.core.aggregate import Aggregator as Aggregator
    from partwise.core.aggregate import Sum as Sum
    from partwise.core.algorithm import Algorithm as Algorithm
    from partwise.core.algorithm import Site as Site
    from partwise.core.algorithm import Task as Task
    from partwise.core.channel import Channel as Channel
    from partwise.core.errors import CheckpointError as CheckpointError
    from partwise.core.errors import ClientError as ClientError
    from partwise.core.errors import CompositionError as CompositionError
    from partwise.core.errors import DataError as DataError
    from partwise.core.errors import DivergedError as DivergedError
    from partwise.core.errors import PartwiseError as PartwiseError
    from partwise.core.errors import ProtocolError as ProtocolError
    from partwise.core.errors import SpecError as SpecError
    from partwise.core.index import Coords as Coords
    from partwise.core.index import Grid as Grid
    from partwise.core.index import Index as Index
    from partwise.core.index import Joint as Joint
    from partwise.core.index import Rows as Rows
    from partwise.core.index import Whole as Whole
    from partwise.core.metrics import AUC as AUC
    from partwise.core.metrics import Accuracy as Accuracy
    from partwise.core.metrics import Loss as Loss
    from partwise.core.metrics import Metric as Metric
    from partwise.core.metrics import Perplexity as Perplexity
    from partwise.core.metrics import TopK as TopK
    from partwise.core.model import BinaryCrossEntropy as BinaryCrossEntropy
    from partwise.core.model import CrossEntropy as CrossEntropy
    from partwise.core.model import MeanSquaredError as MeanSquaredError
    from partwise.core.model import Model as Model
    from partwise.core.plan import GradientTerm as GradientTerm
    from partwise.core.plan import LocalOptimizer as LocalOptimizer
    from partwise.core.plan import LocalPlan as LocalPlan
    from partwise.core.population import Census as Census
    from partwise.core.population import Dataset as Dataset
    from partwise.core.population import Examples as Examples
    from partwise.core.population import Population as Population
    from partwise.core.population import Profile as Profile
    from partwise.core.rng import derive as derive
    from partwise.core.schedule import Scheduler as Scheduler
    from partwise.core.transform import Transform as Transform
    from partwise.core.transform import chain as chain
    from partwise.core.update import Update as Update

__version__ = "0.1.0"

_MODULE_OF = {
    "AUC": "partwise.core.metrics",
    "Accuracy": "partwise.core.metrics",
    "Aggregator": "partwise.core.aggregate",
    "Algorithm": "partwise.core.algorithm",
    "BinaryCrossEntropy": "partwise.core.model",
    "Census": "partwise.core.population",
    "Channel": "partwise.core.channel",
    "CheckpointError": "partwise.core.errors",
    "ClientError": "partwise.core.errors",
    "CompositionError": "partwise.core.errors",
    "Coords": "partwise.core.index",
    "CrossEntropy": "partwise.core.model",
    "DataError": "partwise.core.errors",
    "Dataset": "partwise.core.population",
    "DivergedError": "partwise.core.errors",
    "Examples": "partwise.core.population",
    "GradientTerm": "partwise.core.plan",
    "Grid": "partwise.core.index",
    "Index": "partwise.core.index",
    "Joint": "partwise.core.index",
    "LocalOptimizer": "partwise.core.plan",
    "LocalPlan": "partwise.core.plan",
    "Loss": "partwise.core.metrics",
    "MeanSquaredError": "partwise.core.model",
    "Metric": "partwise.core.metrics",
    "Model": "partwise.core.model",
    "PartwiseError": "partwise.core.errors",
    "Perplexity": "partwise.core.metrics",
    "Population": "partwise.core.population",
    "Profile": "partwise.core.population",
    "ProtocolError": "partwise.core.errors",
    "Rows": "partwise.core.index",
    "Scheduler": "partwise.core.schedule",
    "Site": "partwise.core.algorithm",
    "SpecError": "partwise.core.errors",
    "Sum": "partwise.core.aggregate",
    "Task": "partwise.core.algorithm",
    "TopK": "partwise.core.metrics",
    "Transform": "partwise.core.transform",
    "Update": "partwise.core.update",
    "Whole": "partwise.core.index",
    "chain": "partwise.core.transform",
    "derive": "partwise.core.rng",
}

__all__ = [*_MODULE_OF, "__version__"]  # noqa: PLE0604 - the keys are strings

if not TYPE_CHECKING:  # a checker that saw this function would accept every name

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value  # the next use does not come here
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULE_OF})
