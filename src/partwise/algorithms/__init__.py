"""What a client trains and keeps, and what the server makes of the aggregate."""

from partwise.algorithms.adaalter import AdaAlter
from partwise.algorithms.adaptive_clip import AdaptiveClip
from partwise.algorithms.anchors import FedAMD
from partwise.algorithms.averaging import FedAvg, FedProx
from partwise.algorithms.cser import CSER
from partwise.algorithms.cyclic import MCPSGD, MMPSGD
from partwise.algorithms.deniable import Deniable
from partwise.algorithms.distillation import Distillation
from partwise.algorithms.downlink import Downlink
from partwise.algorithms.ferret import Ferret
from partwise.algorithms.hyper import FedHyper
from partwise.algorithms.latest import FedLaAvg
from partwise.algorithms.mirrored import Mirrored
from partwise.algorithms.mixing import Mixing
from partwise.algorithms.one_byte import OneByte
from partwise.algorithms.outer import CO2, LANS, SignMomentum
from partwise.algorithms.personal import LocalOnly
from partwise.algorithms.ranking import FedRank
from partwise.algorithms.scaffold import Scaffold
from partwise.algorithms.slimmed import FederatedDropout, FjORD, HeteroFL
from partwise.algorithms.submodel import FedSubAvg
from partwise.algorithms.tiers import CrossTier
from partwise.algorithms.utility import Utility
from partwise.algorithms.widths import thinned

__all__ = [
    "CO2",
    "CSER",
    "LANS",
    "MCPSGD",
    "MMPSGD",
    "AdaAlter",
    "AdaptiveClip",
    "CrossTier",
    "Deniable",
    "Distillation",
    "Downlink",
    "FedAMD",
    "FedAvg",
    "FedHyper",
    "FedLaAvg",
    "FedProx",
    "FedRank",
    "FedSubAvg",
    "FederatedDropout",
    "Ferret",
    "FjORD",
    "HeteroFL",
    "LocalOnly",
    "Mirrored",
    "Mixing",
    "OneByte",
    "Scaffold",
    "SignMomentum",
    "Utility",
    "thinned",
]
