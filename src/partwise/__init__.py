"""Federated learning in which each participant holds, trains and sends a part of the model.

Importing the package is quick: the first use of a public name loads its module, and torch with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Type checkers read these lines, the interpreter reads _MODULE_OF; a test keeps them equal.
    from partwise.aggregators import SLSGD as SLSGD
    from partwise.aggregators import Bucketing as Bucketing
    from partwise.aggregators import Bulyan as Bulyan
    from partwise.aggregators import CentredClip as CentredClip
    from partwise.aggregators import DefenceAwareMerging as DefenceAwareMerging
    from partwise.aggregators import FixedMean as FixedMean
    from partwise.aggregators import FlagAggregator as FlagAggregator
    from partwise.aggregators import FoolsGold as FoolsGold
    from partwise.aggregators import GeometricMedian as GeometricMedian
    from partwise.aggregators import Krum as Krum
    from partwise.aggregators import Latest as Latest
    from partwise.aggregators import MajorityVote as MajorityVote
    from partwise.aggregators import Mean as Mean
    from partwise.aggregators import MeanAroundMedian as MeanAroundMedian
    from partwise.aggregators import Median as Median
    from partwise.aggregators import Medoid as Medoid
    from partwise.aggregators import NearestNeighbours as NearestNeighbours
    from partwise.aggregators import Phocas as Phocas
    from partwise.aggregators import PrincipalGradients as PrincipalGradients
    from partwise.aggregators import RankVote as RankVote
    from partwise.aggregators import SybilWall as SybilWall
    from partwise.aggregators import TrimmedMean as TrimmedMean
    from partwise.aggregators import Watch as Watch
    from partwise.aggregators import Zeno as Zeno
    from partwise.aggregators import ZenoPlusPlus as ZenoPlusPlus
    from partwise.algorithms import CO2 as CO2
    from partwise.algorithms import CSER as CSER
    from partwise.algorithms import LANS as LANS
    from partwise.algorithms import MCPSGD as MCPSGD
    from partwise.algorithms import MMPSGD as MMPSGD
    from partwise.algorithms import AdaAlter as AdaAlter
    from partwise.algorithms import AdaptiveClip as AdaptiveClip
    from partwise.algorithms import CrossTier as CrossTier
    from partwise.algorithms import Deniable as Deniable
    from partwise.algorithms import Downlink as Downlink
    from partwise.algorithms import FedAMD as FedAMD
    from partwise.algorithms import FedAvg as FedAvg
    from partwise.algorithms import FederatedDropout as FederatedDropout
    from partwise.algorithms import FedHyper as FedHyper
    from partwise.algorithms import FedLaAvg as FedLaAvg
    from partwise.algorithms import FedProx as FedProx
    from partwise.algorithms import FedSubAvg as FedSubAvg
    from partwise.algorithms import Ferret as Ferret
    from partwise.algorithms import FjORD as FjORD
    from partwise.algorithms import HeteroFL as HeteroFL
    from partwise.algorithms import LocalOnly as LocalOnly
    from partwise.algorithms import Mixing as Mixing
    from partwise.algorithms import OneByte as OneByte
    from partwise.algorithms import Scaffold as Scaffold
    from partwise.algorithms import SignMomentum as SignMomentum
    from partwise.algorithms import Utility as Utility
    from partwise.algorithms.answers import Level as Level
    from partwise.algorithms.deniable import write_universe as write_universe
    from partwise.attacks import AdditiveNoise as AdditiveNoise
    from partwise.attacks import AfterRounds as AfterRounds
    from partwise.attacks import ALittleIsEnough as ALittleIsEnough
    from partwise.attacks import Backdoor as Backdoor
    from partwise.attacks import CoverageAttack as CoverageAttack
    from partwise.attacks import GaussianReplace as GaussianReplace
    from partwise.attacks import Hostile as Hostile
    from partwise.attacks import InnerProduct as InnerProduct
    from partwise.attacks import LabelFlip as LabelFlip
    from partwise.attacks import LabelSwap as LabelSwap
    from partwise.attacks import Mixture as Mixture
    from partwise.attacks import MultiLabelFlip as MultiLabelFlip
    from partwise.attacks import NegatedCrowd as NegatedCrowd
    from partwise.attacks import PoorData as PoorData
    from partwise.attacks import ReversedVote as ReversedVote
    from partwise.attacks import SignFlip as SignFlip
    from partwise.attacks import SomeRounds as SomeRounds
    from partwise.attacks import Sybils as Sybils
    from partwise.channels import Coded as Coded
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
    from partwise.experiment import Journaling as Journaling
    from partwise.experiment import Result as Result
    from partwise.experiment import Trusted as Trusted
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
    from partwise.observers import FedInfluence as FedInfluence
    from partwise.observers import MUDHoG as MUDHoG
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
    from partwise.transforms import Eden as Eden
    from partwise.transforms import ErrorFeedback as ErrorFeedback
    from partwise.transforms import FedZip as FedZip
    from partwise.transforms import FromGrid as FromGrid
    from partwise.transforms import GaussianNoise as GaussianNoise
    from partwise.transforms import Halved as Halved
    from partwise.transforms import HyperRate as HyperRate
    from partwise.transforms import LowRank as LowRank
    from partwise.transforms import Quantize as Quantize
    from partwise.transforms import RandomK as RandomK
    from partwise.transforms import Scale as Scale
    from partwise.transforms import ServerSGD as ServerSGD
    from partwise.transforms import Sign as Sign
    from partwise.transforms import Threshold as Threshold
    from partwise.transforms import TopK as TopK
    from partwise.transforms import TreeNoise as TreeNoise
    from partwise.transforms import Yogi as Yogi
    from partwise.workloads import CIFAR10 as CIFAR10
    from partwise.workloads import MNIST as MNIST
    from partwise.workloads import ClickLog as ClickLog
    from partwise.workloads import FashionMNIST as FashionMNIST
    from partwise.workloads import LeafSynthetic as LeafSynthetic
    from partwise.workloads import Shakespeare as Shakespeare
    from partwise.workloads import ShakespeareGPT as ShakespeareGPT
    from partwise.workloads import SparseLogistic as SparseLogistic
    from partwise.workloads import StdlibCode as StdlibCode
    from partwise.workloads.plays import save_weights as save_weights

__version__ = "0.1.0"

_MODULE_OF = {
    "AUC": "partwise.core.metrics",
    "CIFAR10": "partwise.workloads",
    "CO2": "partwise.algorithms",
    "CSER": "partwise.algorithms",
    "IID": "partwise.populations",
    "LANS": "partwise.algorithms",
    "MCPSGD": "partwise.algorithms",
    "MMPSGD": "partwise.algorithms",
    "MNIST": "partwise.workloads",
    "SGD": "partwise.local",
    "SLSGD": "partwise.aggregators",
    "ALittleIsEnough": "partwise.attacks",
    "Accuracy": "partwise.core.metrics",
    "AdaAlter": "partwise.algorithms",
    "Adagrad": "partwise.transforms",
    "Adam": "partwise.transforms",
    "AdamW": "partwise.local",
    "Adaptive": "partwise.experiment.mechanisms",
    "AdaptiveClip": "partwise.algorithms",
    "AdditiveNoise": "partwise.attacks",
    "AfterRounds": "partwise.attacks",
    "Aggregator": "partwise.core.aggregate",
    "Algorithm": "partwise.core.algorithm",
    "Always": "partwise.populations",
    "ArrayPopulation": "partwise.populations",
    "Auto": "partwise.runtimes.executors",
    "Backdoor": "partwise.attacks",
    "Bernoulli": "partwise.populations",
    "BinaryCrossEntropy": "partwise.core.model",
    "Bitmap": "partwise.channels.unions",
    "Blocks": "partwise.populations",
    "Bloom": "partwise.channels.unions",
    "Bucketing": "partwise.aggregators",
    "Bulyan": "partwise.aggregators",
    "CapWeight": "partwise.transforms",
    "Census": "partwise.core.population",
    "Central": "partwise.experiment.mechanisms",
    "CentredClip": "partwise.aggregators",
    "Channel": "partwise.core.channel",
    "CheckpointError": "partwise.core.errors",
    "Checkpointing": "partwise.experiment",
    "ClassPartition": "partwise.populations",
    "ClickLog": "partwise.workloads",
    "ClientDP": "partwise.experiment.privacy",
    "Clip": "partwise.transforms",
    "Coded": "partwise.channels",
    "Complete": "partwise.channels.graphs",
    "CompositionError": "partwise.core.errors",
    "Constant": "partwise.populations",
    "Coords": "partwise.core.index",
    "CoverageAttack": "partwise.attacks",
    "CrossEntropy": "partwise.core.model",
    "CrossTier": "partwise.algorithms",
    "Daily": "partwise.populations",
    "DataError": "partwise.core.errors",
    "Dataset": "partwise.core.population",
    "DefenceAwareMerging": "partwise.aggregators",
    "Deniable": "partwise.algorithms",
    "Dirichlet": "partwise.populations",
    "DiscreteNoise": "partwise.transforms",
    "Distributed": "partwise.experiment.mechanisms",
    "DivergedError": "partwise.core.errors",
    "Downlink": "partwise.algorithms",
    "Drawn": "partwise.populations",
    "Drift": "partwise.populations",
    "DualDirichlet": "partwise.populations",
    "Eden": "partwise.transforms",
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
    "FedInfluence": "partwise.observers",
    "FedLaAvg": "partwise.algorithms",
    "FedProx": "partwise.algorithms",
    "FedSubAvg": "partwise.algorithms",
    "FedZip": "partwise.transforms",
    "FederatedDropout": "partwise.algorithms",
    "Ferret": "partwise.algorithms",
    "FixedMean": "partwise.aggregators",
    "FjORD": "partwise.algorithms",
    "FlagAggregator": "partwise.aggregators",
    "FoolsGold": "partwise.aggregators",
    "FromGrid": "partwise.transforms",
    "GaussianNoise": "partwise.transforms",
    "GaussianReplace": "partwise.attacks",
    "GeometricMedian": "partwise.aggregators",
    "GradientTerm": "partwise.core.plan",
    "Grid": "partwise.core.index",
    "Halved": "partwise.transforms",
    "HeteroFL": "partwise.algorithms",
    "Hinge": "partwise.schedulers.staleness",
    "Hostile": "partwise.attacks",
    "HyperRate": "partwise.transforms",
    "Index": "partwise.core.index",
    "InnerProduct": "partwise.attacks",
    "Intervals": "partwise.populations",
    "Joint": "partwise.core.index",
    "Journaling": "partwise.experiment",
    "KeyFolder": "partwise.channels.identities",
    "Krum": "partwise.aggregators",
    "LabelFlip": "partwise.attacks",
    "LabelSwap": "partwise.attacks",
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
    "LowRank": "partwise.transforms",
    "MUDHoG": "partwise.observers",
    "MajorityVote": "partwise.aggregators",
    "Markov": "partwise.populations",
    "Masked": "partwise.channels",
    "MaskedUnion": "partwise.channels.unions",
    "Mean": "partwise.aggregators",
    "MeanAroundMedian": "partwise.aggregators",
    "MeanSquaredError": "partwise.core.model",
    "Median": "partwise.aggregators",
    "Medoid": "partwise.aggregators",
    "Metric": "partwise.core.metrics",
    "Mixing": "partwise.algorithms",
    "Mixture": "partwise.attacks",
    "Model": "partwise.core.model",
    "MultiLabelFlip": "partwise.attacks",
    "NaturalKey": "partwise.populations",
    "NearestNeighbours": "partwise.aggregators",
    "NegatedCrowd": "partwise.attacks",
    "OneByte": "partwise.algorithms",
    "Oort": "partwise.schedulers.choices",
    "PartwiseError": "partwise.core.errors",
    "Perplexity": "partwise.core.metrics",
    "Phocas": "partwise.aggregators",
    "Plain": "partwise.channels",
    "Poisson": "partwise.schedulers.choices",
    "Polynomial": "partwise.schedulers.staleness",
    "Pool": "partwise.runtimes.executors",
    "PoorData": "partwise.attacks",
    "Population": "partwise.core.population",
    "PrincipalGradients": "partwise.aggregators",
    "Processes": "partwise.runtimes",
    "Profile": "partwise.core.population",
    "ProfileArrays": "partwise.populations",
    "ProfileTable": "partwise.populations",
    "ProtocolError": "partwise.core.errors",
    "QuantitySkew": "partwise.populations",
    "Quantize": "partwise.transforms",
    "RandomK": "partwise.transforms",
    "RandomRegular": "partwise.channels.graphs",
    "RankVote": "partwise.aggregators",
    "Ray": "partwise.runtimes",
    "Result": "partwise.experiment",
    "ReversedVote": "partwise.attacks",
    "Rows": "partwise.core.index",
    "Scaffold": "partwise.algorithms",
    "Scale": "partwise.transforms",
    "Scheduler": "partwise.core.schedule",
    "ServerSGD": "partwise.transforms",
    "Shakespeare": "partwise.workloads",
    "ShakespeareGPT": "partwise.workloads",
    "Shards": "partwise.populations",
    "Sign": "partwise.transforms",
    "SignFlip": "partwise.attacks",
    "SignMomentum": "partwise.algorithms",
    "Simulate": "partwise.runtimes",
    "SimulatedIdentities": "partwise.channels.identities",
    "SimulatedRandomness": "partwise.core.randomness",
    "Site": "partwise.core.algorithm",
    "SomeRounds": "partwise.attacks",
    "SparseLogistic": "partwise.workloads",
    "SpecError": "partwise.core.errors",
    "Stacked": "partwise.runtimes.executors",
    "Stalest": "partwise.schedulers.choices",
    "StdlibCode": "partwise.workloads",
    "Steady": "partwise.populations",
    "Sum": "partwise.core.aggregate",
    "SybilWall": "partwise.aggregators",
    "Sybils": "partwise.attacks",
    "Synchronous": "partwise.schedulers",
    "SystemRandomness": "partwise.core.randomness",
    "Task": "partwise.core.algorithm",
    "Threshold": "partwise.transforms",
    "Tiered": "partwise.schedulers",
    "TopK": "partwise.transforms",
    "TopKAccuracy": "partwise.core.metrics",
    "Trace": "partwise.populations",
    "Transform": "partwise.core.transform",
    "Tree": "partwise.experiment.mechanisms",
    "TreeNoise": "partwise.transforms",
    "TrimmedMean": "partwise.aggregators",
    "Trusted": "partwise.experiment",
    "Uniform": "partwise.schedulers.choices",
    "Unreliable": "partwise.populations",
    "Update": "partwise.core.update",
    "Utility": "partwise.algorithms",
    "Watch": "partwise.aggregators",
    "Weighted": "partwise.schedulers.choices",
    "Whole": "partwise.core.index",
    "Widths": "partwise.populations",
    "Workload": "partwise.core.workload",
    "Yogi": "partwise.transforms",
    "Zeno": "partwise.aggregators",
    "ZenoPlusPlus": "partwise.aggregators",
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
    "save_weights": "partwise.workloads.plays",
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
