"""A tamper-evident journal of contributions: who sent what, how it was judged, and what that was worth."""

from partwise.journal.entries import GENESIS_PREV, Entry, commitment, digest_of, entry_hash
from partwise.journal.journal import Fault, Journal, Signed, find_tampering, lines_of, proves_equivocation, two_stories
from partwise.journal.merkle import index_leaves, merkle_path, merkle_root, verify_path
from partwise.journal.rules import Books, Terms, lower_median, scores_by_rank, split_pool

__all__ = [
    "GENESIS_PREV",
    "Books",
    "Entry",
    "Fault",
    "Journal",
    "Signed",
    "Terms",
    "commitment",
    "digest_of",
    "entry_hash",
    "find_tampering",
    "index_leaves",
    "lines_of",
    "lower_median",
    "merkle_path",
    "merkle_root",
    "proves_equivocation",
    "scores_by_rank",
    "split_pool",
    "two_stories",
    "verify_path",
]
