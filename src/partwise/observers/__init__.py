"""Who looks at the updates of a round and says whom it suspects; it may report, or also exclude."""

from partwise.core.detect import Reputation
from partwise.observers.coverage import CoverageLimit
from partwise.observers.influence import FedInfluence
from partwise.observers.mud_hog import MUDHoG

__all__ = ["CoverageLimit", "FedInfluence", "MUDHoG", "Reputation"]
