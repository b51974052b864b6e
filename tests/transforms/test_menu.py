"""Several compressors in one: each with its own state, all with one residual."""

import pytest
import torch

from partwise.core.codec import encode
from partwise.core.compressor import Claims, chosen, common
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.transform import Identity, chain
from partwise.core.update import Update
from partwise.transforms import Clip, ErrorFeedback, Halved, LowRank, Menu, Quantize, RandomK, Sign, TopK

EIGHT = Quantize(8, scale_by="max", rounding="nearest")


def update(seed, shape=(12, 9)):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Update(Whole({"w": shape}), {"w": values}, 2.0)


def test_the_chosen_one_is_used_and_keeps_its_state():
    menu, alone = Menu((Identity(), LowRank(1), TopK(k=3))), LowRank(1)
    params = {"w": torch.empty(12, 9, device="meta")}
    state, by_itself = menu.init(params), alone.init(params)
    for at in (1, 2, 0, 1):
        rng = torch.Generator().manual_seed(at)
        sent, state = chosen(menu, at).apply(update(at), state, rng)
        if at == 1:
            expected, by_itself = alone.apply(update(1), by_itself, torch.Generator().manual_seed(1))
            assert torch.equal(sent.values()["w"], expected.values()["w"])
        elif at == 2:
            assert sum(v.numel() for v in sent.values().values()) == 3
        else:
            assert torch.equal(sent.values()["w"], update(0).value["w"])


def test_what_one_leaves_out_another_sends():
    """Sent + owed = all that was to be sent, through changes of the compressor."""
    part = chain(Clip(1e9), ErrorFeedback(Menu((Identity(), EIGHT, Sign(), LowRank(2), TopK(ratio=0.05)))))
    state = part.init({"w": torch.empty(12, 9, device="meta")})
    wanted, got = torch.zeros(12, 9, dtype=torch.float64), torch.zeros(12, 9, dtype=torch.float64)
    owed = []
    for turn, at in enumerate([2, 2, 4, 3, 1, 4, 4, 2, 3, 0]):
        sent, state = chosen(part, at).apply(update(turn), state, torch.Generator().manual_seed(turn))
        wanted += update(turn).value["w"]
        sent.index.scatter_add_({"w": got}, sent.values())
        residual = state[1].value.get("w", torch.zeros(108)).reshape(12, 9)
        assert torch.allclose(got + residual, wanted, atol=1e-5)
        owed.append(float(residual.abs().max()))
    assert min(owed[:-1]) > 1e-4
    assert owed[-1] == 0.0  # the last was sent as it is


def test_what_clients_draw_alike_follows_from_the_version():
    """Its options get the seed of a version, as they do by themselves; another version's is another draw."""
    menu, one = Menu((RandomK(0.5), RandomK(0.2)), at=1), update(1, (40, 25))
    places = []
    for seed in (7, 8):
        alone, _ = common(RandomK(0.2), seed).apply(one, (), torch.Generator())
        sent, _ = common(menu, seed).apply(one, menu.init({}), torch.Generator())
        assert torch.equal(sent.index.coords("w"), alone.index.coords("w"))
        places.append(sent.index.coords("w").tolist())
    assert places[0] != places[1]


def test_sizes_are_those_of_messages():
    menu = Menu((Identity(), Halved(), EIGHT, TopK(k=20), RandomK(0.25)))
    params = {"w": torch.zeros(500, 10), "b": torch.zeros(37)}
    rng = torch.Generator().manual_seed(7)
    drawn = {n: torch.randn(t.shape, generator=rng) for n, t in params.items()}
    for at, size in enumerate(menu.sizes(params)):
        sent, _ = chosen(menu, at).apply(
            Update(Whole({n: tuple(t.shape) for n, t in params.items()}), drawn), menu.init(params), torch.Generator()
        )
        assert len(encode(sent)) == pytest.approx(size, rel=0.15)  # levels and places are coded by what they are
    whole, half, eight, few, some = menu.sizes(params)
    assert whole > 1.9 * half > 3.5 * eight
    assert few < 400 < some < whole / 3.5


def test_it_promises_what_all_promise():
    deltas = [part.claims(40).delta for part in (TopK(ratio=0.3), Sign())]
    assert Menu((Identity(), TopK(ratio=0.3), Sign())).claims(40) == Claims(delta=min(deltas))
    assert Menu((Identity(),)).claims(40) == Claims(delta=1.0, is_linear=True)
    both = Menu((RandomK(0.5, unbiased=True), Quantize(4)))
    assert both.claims(40).omega == max(part.claims(40).omega for part in both.options)
    with pytest.raises(ValueError, match="needs a compressor that is biased"):
        ErrorFeedback(both)


def test_it_refuses():
    with pytest.raises(CompositionError, match="all right on average, or none of them, got both"):
        Menu((Quantize(4), Sign()))
    for make in (lambda: Menu((Sign(),), at=1), lambda: chosen(Menu((Sign(),)), 1), lambda: Menu(())):
        with pytest.raises(ValueError, match=r"must be the number of one of its [01] options, got [01]\. Give it more"):
            make()
