"""Who works, when, how much, and what is committed together."""

from partwise.schedulers.by_link import ByLink
from partwise.schedulers.fedasync import FedAsync
from partwise.schedulers.fedbuff import FedBuff
from partwise.schedulers.fedcompass import FedCompass
from partwise.schedulers.fedfix import FedFix
from partwise.schedulers.overlapped import Overlapped
from partwise.schedulers.synchronous import Synchronous
from partwise.schedulers.tiered import Tiered

__all__ = ["ByLink", "FedAsync", "FedBuff", "FedCompass", "FedFix", "Overlapped", "Synchronous", "Tiered"]
