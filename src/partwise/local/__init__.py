"""Local optimisers, losses and changes to the local gradient: what a plan is made of."""

from partwise.local.hyper import HyperStep
from partwise.local.losses import EdgePopup, Nested, Rescaled
from partwise.local.optimizers import SGD, AdamW
from partwise.local.terms import ClipGradient, Decay, Proximal, Shift, Times
from partwise.local.training import LocalTraining

__all__ = [
    "SGD",
    "AdamW",
    "ClipGradient",
    "Decay",
    "EdgePopup",
    "HyperStep",
    "LocalTraining",
    "Nested",
    "Proximal",
    "Rescaled",
    "Shift",
    "Times",
]
