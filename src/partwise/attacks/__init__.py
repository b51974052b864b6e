"""What hostile clients do, and when: to attack one's own set-up with."""

from partwise.attacks.coverage import CoverageAttack
from partwise.attacks.data import Backdoor, LabelFlip, LabelSwap, MultiLabelFlip, PoorData
from partwise.attacks.faults import BitFlip, Gambler
from partwise.attacks.mixture import Mixture
from partwise.attacks.updates import (
    AdditiveNoise,
    ALittleIsEnough,
    GaussianReplace,
    InnerProduct,
    NegatedCrowd,
    SignFlip,
    Sybils,
)
from partwise.attacks.votes import ReversedVote, VulnerableEdges
from partwise.attacks.when import AfterRounds, SomeRounds
from partwise.core.attack import EveryRound, Hostile

__all__ = [
    "ALittleIsEnough",
    "AdditiveNoise",
    "AfterRounds",
    "Backdoor",
    "BitFlip",
    "CoverageAttack",
    "EveryRound",
    "Gambler",
    "GaussianReplace",
    "Hostile",
    "InnerProduct",
    "LabelFlip",
    "LabelSwap",
    "Mixture",
    "MultiLabelFlip",
    "NegatedCrowd",
    "PoorData",
    "ReversedVote",
    "SignFlip",
    "SomeRounds",
    "Sybils",
    "VulnerableEdges",
]
