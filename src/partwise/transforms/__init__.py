"""One update in, one out: clip, weigh, sparsify, quantize, add noise, optimize."""

from partwise.transforms.clip import Clip, Scale
from partwise.transforms.distributed import DiscreteNoise, FromGrid
from partwise.transforms.feedback import ErrorFeedback, Momentum
from partwise.transforms.halved import Halved
from partwise.transforms.hyper import HyperRate
from partwise.transforms.lowrank import LowRank
from partwise.transforms.menu import Menu
from partwise.transforms.noise import GaussianNoise
from partwise.transforms.optimize import Adagrad, Adam, ServerSGD, Yogi
from partwise.transforms.quantize import Quantize
from partwise.transforms.rotation import Eden
from partwise.transforms.signs import Sign
from partwise.transforms.smooth import Smooth
from partwise.transforms.sparsify import RandomK, Threshold, TopK
from partwise.transforms.tree import TreeNoise
from partwise.transforms.weigh import CapWeight
from partwise.transforms.zipped import FedZip

__all__ = [
    "Adagrad",
    "Adam",
    "CapWeight",
    "Clip",
    "DiscreteNoise",
    "Eden",
    "ErrorFeedback",
    "FedZip",
    "FromGrid",
    "GaussianNoise",
    "Halved",
    "HyperRate",
    "LowRank",
    "Menu",
    "Momentum",
    "Quantize",
    "RandomK",
    "Scale",
    "ServerSGD",
    "Sign",
    "Smooth",
    "Threshold",
    "TopK",
    "TreeNoise",
    "Yogi",
]
