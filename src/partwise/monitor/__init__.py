"""A run looked at from outside while it goes on, or when it is over: in words, and as a page."""

from __future__ import annotations

from partwise.monitor.follow import Follower, Standing
from partwise.monitor.snapshot import snapshot

__all__ = ["Follower", "Standing", "snapshot"]
