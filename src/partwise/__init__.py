"""Federated learning in which each participant holds, trains and sends a part of the model.

Importing the package is quick: the first use of a public name loads its module, and torch with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Type checkers read these lines, the interpreter reads _MODULE_OF; a test keeps them equal.
    from partwise.aggregators import FixedMean as FixedMean
    from partwise.aggregators import Krum as Krum
    from partwise.aggregators import Latest as Latest
    from partwise.aggregators import Mean as Mean
    from partwise.aggregators import Median as Median
    from partwise.aggregators import TrimmedMean as TrimmedMean
    from partwise.algorithms import MCPSGD as MCPSGD
    from partwise.algorithms import MMPSGD as MMPSGD
    from partwise.algorithms import AdaptiveClip as AdaptiveClip
    from partwise.algorithms import CrossTier as CrossTier
    from partwise.algorithms import Deniable as Deniable
    from partwise.algorithms import FedAMD as FedAMD
    from partwise.algorithms import FedAvg as FedAvg
    from partwise.algorithms import FederatedDropout as FederatedDropout
    from partwise.algorithms import FedHyper as FedHyper
    from partwise.algorithms import FedLaAvg as FedLaAvg
    from partwise.algorithms import FedProx as FedProx
    from partwise.algorithms import FedSubAvg as FedSubAvg
    from partwise.algorithms import FjORD as FjORD
    from partwise.algorithms import HeteroFL as HeteroFL
    from partwise.algorithms import LocalOnly as LocalOnly
    from partwise.algorithms import Mixing as Mixing
    from partwise.algorithms import Scaffold as Scaffold
    from partwise.algorithms import Utility as Utility
    from partwise.algorithms.answers import Level as Level
    from partwise.algorithms.deniable import write_universe as write_universe
    from partwise.channels import Masked as Masked
    from partwise.channels import Plain as Plain
    from partwise.channels.graphs import Complete as Complete
    from partwise.channels.graphs import RandomRegular as RandomRegular
    from partwise.channels.identities import KeyFolder as KeyFolder
    from partwise.channels.identities import SimulatedIdentities as SimulatedIdentities
    from partwise.channels.identities import write_keys as write_keys
    from partwise.channels.unions import Bitmap as Bitmap
    from partwise.channels.unions import Bloom as Bloom
    from partwise.channels.unions import MaskedUnion as MaskedUnion
    from partwise.core.aggregate import Aggregator as Aggregator
    from partwise.core.aggregate import Sum as Sum
    from partwise.core.algorithm import Algorithm as Algorithm
    from partwise.core.algorithm import Site as Site
    from partwise.core.algorithm import Task as Task
    from partwise.core.channel import Channel as Channel
    from partwise.core.errors import CheckpointError as CheckpointError
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
    from partwise.core.metrics import TopKAccuracy as TopKAccuracy
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
    from partwise.core.randomness import SimulatedRandomness as SimulatedRandomness
    from partwise.core.randomness import SystemRandomness as SystemRandomness
    from partwise.core.rng import derive as derive
    from partwise.core.schedule import Scheduler as Scheduler
    from partwise.core.transform import Transform as Transform
    from partwise.core.transform import chain as chain
    from partwise.core.update import Update as Update
    from partwise.core.workload import Workload as Workload
    from partwise.experiment import Checkpointing as Checkpointing
    from partwise.experiment import Evaluation as Evaluation
    from partwise.experiment import Experiment as Experiment
    from partwise.experiment import Result as Result
    from partwise.experiment import load as load
    from partwise.experiment import write_report as write_report
    from partwise.experiment.compare import compare as compare
    from partwise.experiment.dump import dump as dump
    from partwise.experiment.mechanisms import Adaptive as Adaptive
    from partwise.experiment.mechanisms import Central as Central
    from partwise.experiment.mechanisms import Distributed as Distributed
    from partwise.experiment.mechanisms import Tree as Tree
    from partwise.experiment.privacy import ClientDP as ClientDP
    from partwise.local import SGD as SGD
    from partwise.local import AdamW as AdamW
    from partwise.local import LocalTraining as LocalTraining
    from partwise.populations import IID as IID
    from partwise.populations import Always as Always
    from partwise.populations import ArrayPopulation as ArrayPopulation
    from partwise.populations import Bernoulli as Bernoulli
    from partwise.populations import Blocks as Blocks
    from partwise.populations import ClassPartition as ClassPartition
    from partwise.populations import Constant as Constant
    from partwise.populations import Daily as Daily
    from partwise.populations import Dirichlet as Dirichlet
    from partwise.populations import Drawn as Drawn
    from partwise.populations import Drift as Drift
    from partwise.populations import DualDirichlet as DualDirichlet
    from partwise.populations import Intervals as Intervals
    from partwise.populations import LinearSizes as LinearSizes
    from partwise.populations import LogNormal as LogNormal
    from partwise.populations import Markov as Markov
    from partwise.populations import NaturalKey as NaturalKey
    from partwise.populations import ProfileArrays as ProfileArrays
    from partwise.populations import ProfileTable as ProfileTable
    from partwise.populations import QuantitySkew as QuantitySkew
    from partwise.populations import Shards as Shards
    from partwise.populations import Steady as Steady
    from partwise.populations import Trace as Trace
    from partwise.populations import Unreliable as Unreliable
    from partwise.populations import Widths as Widths
    from partwise.populations import from_arrays as from_arrays
    from partwise.populations import from_dataset as from_dataset
    from partwise.populations import from_files as from_files
    from partwise.populations import from_hugging_face as from_hugging_face
    from partwise.populations import from_partition as from_partition
    from partwise.populations import from_table as from_table
    from partwise.populations import write_folder as write_folder
    from partwise.programs.union import find_union as find_union
    from partwise.runtimes import Processes as Processes
    from partwise.runtimes import Ray as Ray
    from partwise.runtimes import Simulate as Simulate
    from partwise.runtimes.executors import Auto as Auto
    from partwise.runtimes.executors import Pool as Pool
    from partwise.runtimes.executors import Stacked as Stacked
    from partwise.schedulers import FedAsync as FedAsync
    from partwise.schedulers import FedBuff as FedBuff
    from partwise.schedulers import FedCompass as FedCompass
    from partwise.schedulers import FedFix as FedFix
    from partwise.schedulers import Synchronous as Synchronous
    from partwise.schedulers import Tiered as Tiered
    from partwise.schedulers.choices import Oort as Oort
    from partwise.schedulers.choices import Poisson as Poisson
    from partwise.schedulers.choices import Stalest as Stalest
    from partwise.schedulers.choices import Uniform as Uniform
    from partwise.schedulers.choices import Weighted as Weighted
    from partwise.schedulers.staleness import Hinge as Hinge
    from partwise.schedulers.staleness import Polynomial as Polynomial
    from partwise.transforms import Adagrad as Adagrad
    from partwise.transforms import Adam as Adam
    from partwise.transforms import CapWeight as CapWeight
    from partwise.transforms import Clip as Clip
    from partwise.transforms import DiscreteNoise as DiscreteNoise
    from partwise.transforms import ErrorFeedback as ErrorFeedback
    from partwise.transforms import FromGrid as FromGrid
    from partwise.transforms import GaussianNoise as GaussianNoise
    from partwise.transforms import HyperRate as HyperRate
    from partwise.transforms import Quantize as Quantize
    from partwise.transforms import Scale as Scale
    from partwise.transforms import ServerSGD as ServerSGD
    from partwise.transforms import TopK as TopK
    from partwise.transforms import TreeNoise as TreeNoise
    from partwise.transforms import Yogi as Yogi
    from partwise.workloads import CIFAR10 as CIFAR10
    from partwise.workloads import MNIST as MNIST
    from partwise.workloads import ClickLog as ClickLog
    from partwise.workloads import FashionMNIST as FashionMNIST
    from partwise.workloads import LeafSynthetic as LeafSynthetic
    from partwise.workloads import Shakespeare as Shakespeare
    from partwise.workloads import SparseLogistic as SparseLogistic
    from partwise.workloads import StdlibCode as StdlibCode

__version__ = "0.1.0"

_MODULE_OF = {
    "AUC": "partwise.core.metrics",
    "CIFAR10": "partwise.workloads",
    "IID": "partwise.populations",
    "MCPSGD": "partwise.algorithms",
    "MMPSGD": "partwise.algorithms",
    "MNIST": "partwise.workloads",
    "SGD": "partwise.local",
    "Accuracy": "partwise.core.metrics",
    "Adagrad": "partwise.transforms",
    "Adam": "partwise.transforms",
    "AdamW": "partwise.local",
    "Adaptive": "partwise.experiment.mechanisms",
    "AdaptiveClip": "partwise.algorithms",
    "Aggregator": "partwise.core.aggregate",
    "Algorithm": "partwise.core.algorithm",
    "Always": "partwise.populations",
    "ArrayPopulation": "partwise.populations",
    "Auto": "partwise.runtimes.executors",
    "Bernoulli": "partwise.populations",
    "BinaryCrossEntropy": "partwise.core.model",
    "Bitmap": "partwise.channels.unions",
    "Blocks": "partwise.populations",
    "Bloom": "partwise.channels.unions",
    "CapWeight": "partwise.transforms",
    "Census": "partwise.core.population",
    "Central": "partwise.experiment.mechanisms",
    "Channel": "partwise.core.channel",
    "CheckpointError": "partwise.core.errors",
    "Checkpointing": "partwise.experiment",
    "ClassPartition": "partwise.populations",
    "ClickLog": "partwise.workloads",
    "ClientDP": "partwise.experiment.privacy",
    "Clip": "partwise.transforms",
    "Complete": "partwise.channels.graphs",
    "CompositionError": "partwise.core.errors",
    "Constant": "partwise.populations",
    "Coords": "partwise.core.index",
    "CrossEntropy": "partwise.core.model",
    "CrossTier": "partwise.algorithms",
    "Daily": "partwise.populations",
    "DataError": "partwise.core.errors",
    "Dataset": "partwise.core.population",
    "Deniable": "partwise.algorithms",
    "Dirichlet": "partwise.populations",
    "DiscreteNoise": "partwise.transforms",
    "Distributed": "partwise.experiment.mechanisms",
    "DivergedError": "partwise.core.errors",
    "Drawn": "partwise.populations",
    "Drift": "partwise.populations",
    "DualDirichlet": "partwise.populations",
    "ErrorFeedback": "partwise.transforms",
    "Evaluation": "partwise.experiment",
    "Examples": "partwise.core.population",
    "Experiment": "partwise.experiment",
    "FashionMNIST": "partwise.workloads",
    "FedAMD": "partwise.algorithms",
    "FedAsync": "partwise.schedulers",
    "FedAvg": "partwise.algorithms",
    "FedBuff": "partwise.schedulers",
    "FedCompass": "partwise.schedulers",
    "FedFix": "partwise.schedulers",
    "FedHyper": "partwise.algorithms",
    "FedLaAvg": "partwise.algorithms",
    "FedProx": "partwise.algorithms",
    "FedSubAvg": "partwise.algorithms",
    "FederatedDropout": "partwise.algorithms",
    "FixedMean": "partwise.aggregators",
    "FjORD": "partwise.algorithms",
    "FromGrid": "partwise.transforms",
    "GaussianNoise": "partwise.transforms",
    "GradientTerm": "partwise.core.plan",
    "Grid": "partwise.core.index",
    "HeteroFL": "partwise.algorithms",
    "Hinge": "partwise.schedulers.staleness",
    "HyperRate": "partwise.transforms",
    "Index": "partwise.core.index",
    "Intervals": "partwise.populations",
    "Joint": "partwise.core.index",
    "KeyFolder": "partwise.channels.identities",
    "Krum": "partwise.aggregators",
    "Latest": "partwise.aggregators",
    "LeafSynthetic": "partwise.workloads",
    "Level": "partwise.algorithms.answers",
    "LinearSizes": "partwise.populations",
    "LocalOnly": "partwise.algorithms",
    "LocalOptimizer": "partwise.core.plan",
    "LocalPlan": "partwise.core.plan",
    "LocalTraining": "partwise.local",
    "LogNormal": "partwise.populations",
    "Loss": "partwise.core.metrics",
    "Markov": "partwise.populations",
    "Masked": "partwise.channels",
    "MaskedUnion": "partwise.channels.unions",
    "Mean": "partwise.aggregators",
    "MeanSquaredError": "partwise.core.model",
    "Median": "partwise.aggregators",
    "Metric": "partwise.core.metrics",
    "Mixing": "partwise.algorithms",
    "Model": "partwise.core.model",
    "NaturalKey": "partwise.populations",
    "Oort": "partwise.schedulers.choices",
    "PartwiseError": "partwise.core.errors",
    "Perplexity": "partwise.core.metrics",
    "Plain": "partwise.channels",
    "Poisson": "partwise.schedulers.choices",
    "Polynomial": "partwise.schedulers.staleness",
    "Pool": "partwise.runtimes.executors",
    "Population": "partwise.core.population",
    "Processes": "partwise.runtimes",
    "Profile": "partwise.core.population",
    "ProfileArrays": "partwise.populations",
    "ProfileTable": "partwise.populations",
    "ProtocolError": "partwise.core.errors",
    "QuantitySkew": "partwise.populations",
    "Quantize": "partwise.transforms",
    "RandomRegular": "partwise.channels.graphs",
    "Ray": "partwise.runtimes",
    "Result": "partwise.experiment",
    "Rows": "partwise.core.index",
    "Scaffold": "partwise.algorithms",
    "Scale": "partwise.transforms",
    "Scheduler": "partwise.core.schedule",
    "ServerSGD": "partwise.transforms",
    "Shakespeare": "partwise.workloads",
    "Shards": "partwise.populations",
    "Simulate": "partwise.runtimes",
    "SimulatedIdentities": "partwise.channels.identities",
    "SimulatedRandomness": "partwise.core.randomness",
    "Site": "partwise.core.algorithm",
    "SparseLogistic": "partwise.workloads",
    "SpecError": "partwise.core.errors",
    "Stacked": "partwise.runtimes.executors",
    "Stalest": "partwise.schedulers.choices",
    "StdlibCode": "partwise.workloads",
    "Steady": "partwise.populations",
    "Sum": "partwise.core.aggregate",
    "Synchronous": "partwise.schedulers",
    "SystemRandomness": "partwise.core.randomness",
    "Task": "partwise.core.algorithm",
    "Tiered": "partwise.schedulers",
    "TopK": "partwise.transforms",
    "TopKAccuracy": "partwise.core.metrics",
    "Trace": "partwise.populations",
    "Transform": "partwise.core.transform",
    "Tree": "partwise.experiment.mechanisms",
    "TreeNoise": "partwise.transforms",
    "TrimmedMean": "partwise.aggregators",
    "Uniform": "partwise.schedulers.choices",
    "Unreliable": "partwise.populations",
    "Update": "partwise.core.update",
    "Utility": "partwise.algorithms",
    "Weighted": "partwise.schedulers.choices",
    "Whole": "partwise.core.index",
    "Widths": "partwise.populations",
    "Workload": "partwise.core.workload",
    "Yogi": "partwise.transforms",
    "chain": "partwise.core.transform",
    "compare": "partwise.experiment.compare",
    "derive": "partwise.core.rng",
    "dump": "partwise.experiment.dump",
    "find_union": "partwise.programs.union",
    "from_arrays": "partwise.populations",
    "from_dataset": "partwise.populations",
    "from_files": "partwise.populations",
    "from_hugging_face": "partwise.populations",
    "from_partition": "partwise.populations",
    "from_table": "partwise.populations",
    "load": "partwise.experiment",
    "write_folder": "partwise.populations",
    "write_keys": "partwise.channels.identities",
    "write_report": "partwise.experiment",
    "write_universe": "partwise.algorithms.deniable",
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
