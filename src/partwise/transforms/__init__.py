"""One update in, one out: clip, weigh, sparsify, quantize, add noise, optimize."""

from partwise.transforms.clip import Clip, Scale
from partwise.transforms.distributed import DiscreteNoise, FromGrid
from partwise.transforms.hyper import HyperRate
from partwise.transforms.noise import GaussianNoise
from partwise.transforms.optimize import Adagrad, Adam, ServerSGD, Yogi
from partwise.transforms.quantize import Quantize
from partwise.transforms.sparsify import ErrorFeedback, TopK
from partwise.transforms.tree import TreeNoise
from partwise.transforms.weigh import CapWeight

__all__ = [
    "Adagrad",
    "Adam",
    "CapWeight",
    "Clip",
    "DiscreteNoise",
    "ErrorFeedback",
    "FromGrid",
    "GaussianNoise",
    "HyperRate",
    "Quantize",
    "Scale",
    "ServerSGD",
    "TopK",
    "TreeNoise",
    "Yogi",
]
