"""What clients fetch, made shorter on its way down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from partwise.core.compressor import common, compressors
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Whole
from partwise.core.joined import check_packed
from partwise.core.model import Params, Values
from partwise.core.rng import derive, generator
from partwise.core.transform import Chain, Transform
from partwise.core.update import Packed, Update

__all__ = ["Coded", "check_download", "check_streams", "made_shorter", "opened"]

Coded = Mapping[str, Tensor | Packed]


def check_download(chain: Transform) -> None:
    """Refuse what is not for models: a client gets a part once, and nobody makes up for what is lost of it.

    Raises:
        CompositionError: a stage that is no compressor, that keeps something, or leaves coordinates out.
    """
    stages = chain.stages if isinstance(chain, Chain) else (chain,)
    like = {"w": torch.ones(16, 16)}
    for stage in stages:
        update = Update(Whole({"w": (16, 16)}), like)
        is_whole = False
        if compressors(stage) == (stage,) and stage.init(like) == ():
            is_whole = stage.apply(update, (), torch.Generator())[0].index is update.index
        if not is_whole:
            raise CompositionError(
                f"{stage!r}: cannot be in a download chain, whose parts must send every value in fewer bits and keep "
                "nothing, got another. Use Quantize, Halved or Eden there; Downlink sends differences instead."
            )


def check_streams(chains: Iterable[str], streams: Iterable[str]) -> None:
    """Refuse a chain for what the server does not have.

    Raises:
        CompositionError: it names the streams there are.
    """
    unknown = sorted(set(chains) - set(streams))
    if unknown:
        raise CompositionError(
            f"Star(download_chain): must be for the server's streams {sorted(streams)}, got {unknown}. Name one of "
            "them."
        )


def made_shorter(chain: Transform, index: Index, values: Values, seed: int, stream: str, version: int) -> Coded:
    """Held values as they are sent. Clients of a version that hold the same get the same."""
    drawn = derive(seed, f"download of {stream}", version)
    sent, _ = common(chain, drawn).apply(Update(index, values), chain.init({}), generator(drawn, "chance"))
    return sent.value


def opened(streams: Mapping[str, Coded], like: Params) -> dict[str, Values]:
    """What was sent, as a client uses it.

    Raises:
        ProtocolError: a packed value that would become larger than the parameter in `like` that it is a part of.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for stream, values in streams.items():
        check_packed(f"Held.streams[{stream!r}]", values, like)
        found[stream] = {n: v if isinstance(v, Tensor) else v.unpack() for n, v in values.items()}
    return found
