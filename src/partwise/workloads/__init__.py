"""Built-in data sets and the small models that fit them."""

from partwise.workloads.generated import ClickLog, LeafSynthetic, SparseLogistic
from partwise.workloads.images import CIFAR10, MNIST, FashionMNIST
from partwise.workloads.plays import ShakespeareGPT
from partwise.workloads.shakespeare import Shakespeare
from partwise.workloads.stdlib_code import StdlibCode
from partwise.workloads.with_loss import WithLoss

__all__ = [
    "CIFAR10",
    "MNIST",
    "ClickLog",
    "FashionMNIST",
    "LeafSynthetic",
    "Shakespeare",
    "ShakespeareGPT",
    "SparseLogistic",
    "StdlibCode",
    "WithLoss",
]
