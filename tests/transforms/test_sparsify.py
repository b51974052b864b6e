import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from partwise.core.codec import encoded_size
from partwise.core.index import Grid, Rows, Whole
from partwise.core.update import Update
from partwise.testing.examples import example_indices, example_params, example_update
from partwise.transforms import RandomK, Threshold, TopK
from toy_sent import dense, sent_by, whole

# ---- TopK -----------------------------------------------------------------------------------------------------------


def test_ties_go_to_the_lower_position():
    sent = sent_by(TopK(k=2), whole(1.0, -2.0, 2.0, 2.0, -2.0))
    assert sent.index.coords("w").tolist() == [1, 2]
    assert sent.values()["w"].tolist() == [-2.0, 2.0]


def test_positions_are_those_of_the_whole_parameter():
    rows = Rows({"E": (6, 2)}, {"E": torch.tensor([1, 4])})
    sent = sent_by(TopK(k=2), Update(rows, {"E": torch.tensor([[0.5, -3.0], [2.0, 0.1]])}))
    assert sent.index.coords("E").tolist() == [3, 8]
    grid = Grid({"W": (3, 4)}, {"W": (torch.tensor([0, 2]), torch.tensor([1, 3]))})
    sent = sent_by(TopK(k=1), Update(grid, {"W": torch.tensor([[1.0, 2.0], [-9.0, 4.0]])}))
    assert (sent.index.coords("W").tolist(), sent.values()["W"].tolist()) == ([9], [-9.0])


def test_scope():
    update = Update(
        Whole({"a": (3,), "b": (2,)}), {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([40.0, -50.0])}, 3.0
    )
    globally = sent_by(TopK(k=2), update)
    assert set(globally.index.shapes) == {"b"}  # nothing of `a` is among the two largest
    per_layer = sent_by(TopK(k=1, scope="layer"), update)
    assert {n: per_layer.index.coords(n).tolist() for n in "ab"} == {"a": [2], "b": [1]}
    assert per_layer.weight == 3.0
    half = sent_by(TopK(ratio=0.5, scope="layer"), update)  # 1.5 of 3 rounds to 2
    assert {n: half.index.coords(n).tolist() for n in "ab"} == {"a": [1, 2], "b": [1]}


@pytest.mark.parametrize(("ratio", "held", "expected"), [(0.29, 100, 29), (0.57, 100, 57), (0.001, 10, 1), (0.5, 7, 4)])
def test_ratio_loses_none_to_truncation(ratio, held, expected):
    value = torch.arange(1.0, held + 1)
    sent = sent_by(TopK(ratio=ratio), Update(Whole({"w": (held,)}), {"w": value}))
    assert len(sent.values()["w"]) == expected


def test_all_of_it_is_lossless():
    params = example_params()
    for index in example_indices(params).values():
        update = example_update(index, params, seed=1)
        assert sent_by(TopK(ratio=1.0), update) is update
        assert sent_by(TopK(k=10**6, scope="layer"), update) is update


def test_weights_per_row_follow_their_coordinates():
    rows = Rows({"E": (6, 2)}, {"E": torch.tensor([1, 4])})
    update = Update(rows, {"E": torch.tensor([[0.5, -3.0], [2.0, 0.1]])}, {"E": torch.tensor([10.0, 70.0])})
    sent = sent_by(TopK(k=2), update)
    assert sent.weight["E"].tolist() == [10.0, 70.0]
    assert sent_by(TopK(k=1), update).weight["E"].tolist() == [10.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30), st.integers(1, 30))
def test_contraction_and_oracle(values, k):
    """‖x - top_k(x)‖² <= (1 - k/d) ‖x‖²; the positions are those of a sort by (-|x|, position)."""
    sent = sent_by(TopK(k=k), whole(*map(float, values)))
    kept = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k])
    assert sent.index.coords("w").tolist() == kept
    lost = sum(values[i] ** 2 for i in range(len(values)) if i not in kept)
    assert lost <= (1 - min(k, len(values)) / len(values)) * sum(v * v for v in values) + 1e-9


def test_warmup_sends_a_quarter_and_then_ever_fewer():
    """250, then sqrt(sqrt(25)) = 2.236 times fewer in each of four messages; small updates send what they have."""
    update = Update(Whole({"w": (1000,)}), {"w": torch.randn(1000, generator=torch.Generator().manual_seed(3))})
    for part in (TopK(k=10, warmup=4), TopK(ratio=0.01, warmup=4), TopK(k=10, scope="layer", warmup=4)):
        state, counts = part.init({}), []
        for _ in range(7):
            sent, state = part.apply(update, state, torch.Generator())
            counts.append(len(sent.index.coords("w")))
        assert counts == [250, 112, 50, 22, 10, 10, 10]
    few = Update(Whole({"w": (8,)}), {"w": torch.arange(8.0)})
    part = TopK(k=5, warmup=4)
    assert len(part.apply(few, part.init({}), torch.Generator())[0].value["w"]) == 5
    with pytest.raises(ValueError, match=r"TopK\(warmup=-1\): must be at least 0, got -1\. 0 is none\."):
        TopK(k=1, warmup=-1)


def test_message_shrinks():
    update = Update(Whole({"w": (100_000,)}), {"w": torch.randn(100_000, generator=torch.Generator())})
    assert encoded_size(sent_by(TopK(ratio=0.01), update)) < encoded_size(update) / 50


def test_a_guessed_threshold_sends_about_k():
    """Every coordinate that is sent is larger than every one that is not, and there are half of k to twice k."""
    rng = torch.Generator().manual_seed(4)
    update = Update(
        Whole({"a": (300, 40), "b": (7_000,)}),
        {"a": torch.randn(300, 40, generator=rng), "b": 3 * torch.randn(7_000, generator=rng)},
    )
    part = TopK(ratio=0.02, sample=2000)
    sent, _ = part.apply(update, (), torch.Generator().manual_seed(1))
    again, _ = part.apply(update, (), torch.Generator().manual_seed(1))
    full = dense(sent, update.index.shapes)
    assert full == dense(again, update.index.shapes)
    count = sum(x != 0 for flat in full.values() for x in flat)
    assert 190 <= count <= 760
    assert count != 380  # exactly k would mean that nothing was guessed
    smallest = min(abs(x) for flat in full.values() for x in flat if x)
    left = [
        abs(x)
        for n, v in update.values().items()
        for x, y in zip(v.reshape(-1).tolist(), full[n], strict=True)
        if not y
    ]
    assert max(left) <= smallest


def test_a_guess_that_fails_is_not_used():
    """Of values that are nearly all equal, a threshold lets pass all or none."""
    values = torch.ones(1000)
    values[::2] = 0.5
    update = Update(Whole({"w": (1000,)}), {"w": values})
    sent = sent_by(TopK(k=10, sample=100), update)
    assert sent.index.coords("w").tolist() == list(range(1, 20, 2))


@pytest.mark.parametrize("seed", range(5))
def test_a_guess_looks_into_layers_that_are_shorter_than_its_stride(seed):
    """100 layers of 5 values, of which every 50th of a layer would be looked at: each gives one all the same."""
    rng = torch.Generator().manual_seed(seed)
    values = {f"w{i}": torch.randn(5, generator=rng) for i in range(100)}
    update = Update(Whole(dict.fromkeys(values, (5,))), values)
    sent, _ = TopK(ratio=0.1, sample=10).apply(update, (), rng)
    assert 25 <= sum(v.numel() for v in sent.values().values()) <= 100


# ---- Threshold ------------------------------------------------------------------------------------------------------


def test_threshold():
    sent = sent_by(Threshold(1.0), whole(1.0, -2.0, 0.5, 3.0))
    assert (sent.index.coords("w").tolist(), sent.values()["w"].tolist()) == ([1, 3], [-2.0, 3.0])
    assert not sent_by(Threshold(5.0), whole(1.0, -2.0)).index.shapes
    everything = whole(1.0, -2.0)
    assert sent_by(Threshold(0.5), everything) is everything
    with pytest.raises(ValueError, match=r"Threshold\(above=-1\): must be finite and at least 0, got -1\."):
        Threshold(-1)
    with pytest.raises(ValueError, match=r"Threshold\(above=1\): needs an update without NaN, got one\."):
        sent_by(Threshold(1), whole(1.0, float("nan")))


# ---- RandomK --------------------------------------------------------------------------------------------------------


def test_submodels_send_the_same_of_what_they_share():
    values = torch.arange(1.0, 601.0).reshape(60, 10)
    rows = torch.tensor([2, 17, 40])
    part = RandomK(0.3, seed=9)
    full = dense(sent_by(part, Update(Whole({"E": (60, 10)}), {"E": values})), {"E": (60, 10)})["E"]
    few = dense(sent_by(part, Update(Rows({"E": (60, 10)}, {"E": rows}), {"E": values[rows]})), {"E": (60, 10)})["E"]
    for row in range(60):
        assert few[10 * row : 10 * row + 10] == (full[10 * row : 10 * row + 10] if row in rows else [0.0] * 10)
    assert 120 <= sum(x != 0 for x in full) <= 240  # 180 of 600 expected, 11 the standard deviation


def test_blocks_go_together():
    sent = sent_by(RandomK(0.5, block=8, seed=2), Update(Whole({"w": (100,)}), {"w": torch.ones(100)}))
    at = sent.index.coords("w").tolist()
    assert set(range(13)) > {i // 8 for i in at}
    assert at == [i for i in range(100) if i // 8 in {j // 8 for j in at}]


def test_rows_go_together_with_their_weights():
    rows = torch.tensor([0, 2, 3, 17, 40])
    values = {"E": torch.arange(1.0, 11.0).reshape(5, 2), "b": torch.arange(4.0)}
    index = Rows({"E": (60, 2), "b": (4,)}, {"E": rows, "b": None})
    part = RandomK(0.5, by_row=True, seed=4)
    by_row = {"E": torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]]), "b": torch.tensor(7.0)}
    sent = sent_by(part, Update(index, values, by_row))
    kept = (sent.index.coords("E")[::2] // 2).tolist()
    assert 0 < len(kept) < 5
    assert sent.index.grain("E") == 1
    assert sent.values()["E"].tolist() == [values["E"][rows.tolist().index(row)].tolist() for row in kept]
    assert sent.weight["E"].tolist() == [[1.0 + rows.tolist().index(row)] for row in kept]
    assert sent.weight["b"].tolist() == [7.0] * len(sent.values()["b"])
    fine = {"E": torch.arange(10.0).reshape(5, 2), "b": torch.arange(4.0)}
    assert torch.equal(sent_by(part, Update(index, values, fine)).weight["E"] + 1, sent.values()["E"])


def test_positions_are_not_sent():
    update = Update(Whole({"w": (100_000,)}), {"w": torch.ones(100_000)})
    sent = sent_by(RandomK(0.01, seed=5), update)
    assert encoded_size(sent) <= 4 * sent.values()["w"].numel() + 200


def test_unbiased_divides_by_the_chance():
    one, other = (sent_by(RandomK(0.25, unbiased=u, seed=3), whole(*map(float, range(1, 30)))) for u in (True, False))
    assert one.values()["w"].tolist() == [4 * x for x in other.values()["w"].tolist()]


def test_random_k_refuses():
    with pytest.raises(ValueError, match=r"RandomK\(ratio=0\): must lie in \(0, 1\], got 0\."):
        RandomK(0)
    with pytest.raises(ValueError, match=r"RandomK\(block=0, seed=0\): needs a block of at least 1"):
        RandomK(0.5, block=0)
    drawn = sent_by(RandomK(0.5), whole(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"RandomK\(.*needs an update that was not drawn before, got one\."):
        sent_by(RandomK(0.5), drawn)


def test_topk_refuses():
    with pytest.raises(ValueError, match=r"TopK\(k=None, ratio=None\): needs either k or ratio, got neither\."):
        TopK()
    with pytest.raises(ValueError, match=r"TopK\(k=3, ratio=0\.1\): needs either k or ratio, got both\."):
        TopK(k=3, ratio=0.1)
    with pytest.raises(ValueError, match=r"TopK\(k=0\): must be at least 1, got 0\."):
        TopK(k=0)
    with pytest.raises(ValueError, match=r"TopK\(ratio=1\.5\): must lie in \(0, 1\], got 1\.5\."):
        TopK(ratio=1.5)
    with pytest.raises(ValueError, match=r"TopK\(scope='row'\): must be 'global' or 'layer', got 'row'\."):
        TopK(k=1, scope="row")
    with pytest.raises(ValueError, match=r"TopK\(\): needs an update without NaN, got one\."):
        sent_by(TopK(k=1), whole(1.0, float("nan")))


def test_top_k_of_small_layers_keeps_what_it_promises():
    """A third of four entries is one of them, which is less than a third of what they are, where all are alike."""
    part, layers = TopK(ratio=0.3, scope="layer"), {f"l{at}": torch.ones(4) for at in range(10)}
    update = Update(Whole(dict.fromkeys(layers, (4,))), layers)
    sent, _ = part.apply(update, part.init({}), torch.Generator())
    kept = sum(float(v.square().sum()) for v in sent.values().values()) / 40
    assert kept == 0.25
    assert part.claims(40).delta <= kept
    assert TopK(ratio=0.3).claims(40).delta == 0.3
