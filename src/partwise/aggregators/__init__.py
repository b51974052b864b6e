"""Many updates in, one out."""

from partwise.core.mean import Mean

__all__ = ["Mean"]
