"""Many updates in, one out."""

from partwise.aggregators.bulyan import Bulyan
from partwise.aggregators.clipping import CentredClip
from partwise.aggregators.coordinatewise import Median, TrimmedMean
from partwise.aggregators.fixed import FixedMean
from partwise.aggregators.flag import FlagAggregator
from partwise.aggregators.foolsgold import FoolsGold
from partwise.aggregators.geometric_median import GeometricMedian, Medoid
from partwise.aggregators.krum import Krum
from partwise.aggregators.merging import DefenceAwareMerging
from partwise.aggregators.mixing import Bucketing, NearestNeighbours
from partwise.aggregators.nearest import MeanAroundMedian, Phocas
from partwise.aggregators.principal import PrincipalGradients
from partwise.aggregators.scored import Zeno, ZenoPlusPlus
from partwise.aggregators.slsgd import SLSGD
from partwise.aggregators.sybilwall import SybilWall
from partwise.aggregators.vote import MajorityVote
from partwise.aggregators.watch import Watch
from partwise.core.latest import Latest
from partwise.core.mean import Mean
from partwise.core.rank_vote import RankVote

__all__ = [
    "SLSGD",
    "Bucketing",
    "Bulyan",
    "CentredClip",
    "DefenceAwareMerging",
    "FixedMean",
    "FlagAggregator",
    "FoolsGold",
    "GeometricMedian",
    "Krum",
    "Latest",
    "MajorityVote",
    "Mean",
    "MeanAroundMedian",
    "Median",
    "Medoid",
    "NearestNeighbours",
    "Phocas",
    "PrincipalGradients",
    "RankVote",
    "SybilWall",
    "TrimmedMean",
    "Watch",
    "Zeno",
    "ZenoPlusPlus",
]
