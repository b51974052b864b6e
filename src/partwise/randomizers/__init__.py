"""Answers that a client perturbs before it gives them: local differential privacy of one value out of k."""

from partwise.randomizers.budget import LocalBudget
from partwise.randomizers.choosing import best
from partwise.randomizers.hadamard import HadamardResponse
from partwise.randomizers.hashing import LocalHashing
from partwise.randomizers.randomizer import Randomizer, combined, normalized
from partwise.randomizers.response import RandomizedResponse
from partwise.randomizers.unary import UnaryEncoding

__all__ = [
    "HadamardResponse",
    "LocalBudget",
    "LocalHashing",
    "RandomizedResponse",
    "Randomizer",
    "UnaryEncoding",
    "best",
    "combined",
    "normalized",
]
