"""A run looked at from outside while it goes on, or when it is over: in words, and as a page."""

from __future__ import annotations

from partwise.monitor.follow import Follower
from partwise.monitor.snapshot import snapshot
from partwise.monitor.standing import Incident, Node, Standing

__all__ = ["Follower", "Incident", "Node", "Standing", "snapshot"]
