from __future__ import annotations

import math

import pytest
import torch

from partwise.core.errors import DataError
from partwise.core.plan import Job, LocalPlan, ModelLoss
from partwise.local import AdamW
from partwise.runtimes.executors import Plain
from partwise.workloads import ShakespeareGPT
from partwise.workloads.gpt import GPT
from partwise.workloads.plays import save_weights


@pytest.fixture
def folder(tmp_path):
    for play in range(5):
        roles = [f"ANN\tThe play of number {play} begins,\n\tand goes on and on.\n", f"BOB\tSo says play {play}.\n"]
        (tmp_path / f"play{play}.txt").write_text("\n".join(roles * 2))
    return tmp_path


def source(folder, **fields):
    return ShakespeareGPT(
        folder, **{"context": 8, "width": 16, "heads": 2, "layers": 2, "min_chars": 3, "test_share": 0.0, **fields}
    )


def spelled(values):
    alphabet = "\n" + "".join(chr(c) for c in range(32, 127))
    return "".join(alphabet[i] for i in values.tolist())


def names(workload):
    return [workload.population.name(c) for c in workload.population.clients]


def test_the_target_is_the_next_character_of_each(folder):
    workload = source(folder).build(0)
    data = workload.population.data(0).columns()
    text = "The play of number 0 begins,\nand goes on and on.\nThe play of number 0 begins,\nand goes on and on."
    assert spelled(data["text"].reshape(-1)) == text[: len(data["text"]) * 8]
    assert spelled(data["y"].reshape(-1)) == text[1 : len(data["text"]) * 8 + 1]
    assert len(data["text"]) == (len(text) - 1) // 8


def test_who_the_clients_are(folder):
    roles = [f"play{p}/{r}" for p in range(5) for r in ("ANN", "BOB")]
    assert names(source(folder).build(0)) == roles
    assert names(source(folder, clients="play").build(0)) == [f"play{p}" for p in range(5)]
    pretrain, tune = (set(names(source(folder, half=h, clients="play").build(0))) for h in ("pretrain", "tune"))
    assert (pretrain, tune) == ({"play0", "play2", "play4"}, {"play1", "play3"})
    clusters = source(folder, clusters=2).build(0)
    assert names(clusters) == ["cluster 0", "cluster 1"]
    assert "play of number 2" in spelled(clusters.population.data(0).columns()["text"].reshape(-1))
    assert "number 3" in spelled(clusters.population.data(1).columns()["text"].reshape(-1))


@pytest.mark.parametrize("fields", [{"min_chars": 100}, {"max_clients": 3}])
def test_a_play_is_in_the_same_half_whichever_roles_are_kept(folder, fields):
    for play in (1, 2):  # the only ones with long roles
        (folder / f"play{play}.txt").write_text(f"ANN\t{'Long ' * 60}.\n\nBOB\t{'long ' * 50}.\n")
    (folder / "play0.txt").write_text("ANN\tShort, all in all.\n")
    (folder / "sonnets.txt").write_text("No speech at all.\n")
    found = [set(names(source(folder, half=h, clients="play", **fields).build(0))) for h in ("pretrain", "tune")]
    assert found[0] <= {"play0", "play2", "play4"}
    assert found[1] <= {"play1", "play3"}
    assert "play2" in found[0]
    assert "play1" in found[1]


def test_the_last_share_is_the_test_set(folder):
    workload = source(folder, clients="play", test_share=0.4).build(0)
    train, test = workload.population.data(0), workload.population.test_data(0)
    assert 0 < len(test) < len(train)
    both = spelled(train.columns()["text"].reshape(-1)), spelled(test.columns()["text"].reshape(-1))
    assert not both[0].endswith(both[1])


def test_what_comes_later_is_not_seen():
    torch.manual_seed(0)
    net, text = GPT(96, 16, 2, 2, context=8), torch.randint(96, (3, 8))
    other = text.clone()
    other[:, 5:] = (other[:, 5:] + 7) % 96
    one, two = net(text), net(other)
    assert one.shape == (3, 96, 8)
    assert torch.allclose(one[:, :, :5], two[:, :, :5], atol=1e-6)
    assert not torch.allclose(one[:, :, 5:], two[:, :, 5:], atol=1e-3)
    assert torch.allclose(net(text[:, :4]), one[:, :, :4], atol=1e-6)


@pytest.mark.parametrize(
    ("width", "heads", "layers", "millions"), [(64, 4, 4, 0.2), (128, 4, 4, 0.8), (256, 8, 4, 3.2), (384, 6, 6, 10.7)]
)
def test_sizes(width, heads, layers, millions):
    with torch.device("meta"):
        net = GPT(96, width, heads, layers)
    size = sum(p.numel() for p in net.parameters())
    assert size == 12 * layers * width**2 + 13 * layers * width + (96 + 64 + 2) * width
    assert size / 1e6 == pytest.approx(millions, rel=0.06)


def test_it_begins_even_and_learns(folder):
    workload = source(folder, clients="play").build(0)
    model, data = workload.model, workload.population.data(0)
    params = model.init(1)
    before = float(model.losses(params, data.batch(torch.arange(len(data)))).mean().detach())
    assert before == pytest.approx(math.log(96), rel=0.02)
    plan = LocalPlan(ModelLoss(model), AdamW(0.01), batch_size=8, steps=120)
    (trained,) = Plain().run([Job(plan, params, data, 5)])
    after = {name: t + trained.change[name] for name, t in params.items()}
    assert float(model.losses(after, data.batch(torch.arange(len(data)))).mean()) < 1.0


def test_weights_to_begin_with(folder, tmp_path):
    workload = source(folder).build(0)
    params = {name: t + 0.5 for name, t in workload.model.init(3).items()}
    save_weights(params, tmp_path / "half.safetensors")
    again = source(folder, weights=tmp_path / "half.safetensors").build(0).model.init(9)
    assert all(torch.equal(again[name], t) for name, t in params.items())
    with pytest.raises(DataError, match=r"must be of the same width, layers and context, got others\."):
        source(folder, weights=tmp_path / "half.safetensors", width=32).build(0)
    with pytest.raises(DataError, match=r"must be a file of save_weights, got none\. Make one\."):
        source(folder, weights=tmp_path / "no.safetensors").build(0)


def test_it_refuses(folder):
    for fields, message in (
        ({"width": 0}, r"ShakespeareGPT\(width=0\): must be at least 1\. Raise it\."),
        ({"heads": 3}, r"width=16, heads=3\): the width must be a multiple of the heads, got a rest of 1\."),
        ({"half": "first"}, r"ShakespeareGPT\(half='first', clients='role'\): must be of"),
        ({"test_share": 1.0}, r"test_share=1\.0\): needs counts from 0 on and a share in \[0, 1\), got others\."),
    ):
        with pytest.raises(ValueError, match=message):
            source(folder, **fields)
    with pytest.raises(
        DataError, match=r"ShakespeareGPT\(context=5000\): needs a client with more text than a context"
    ):
        source(folder, context=5000).build(0)
    assert len(names(source(folder, clusters=5).build(0))) == 5
    with pytest.raises(DataError, match=r"ShakespeareGPT\(clusters=6\): needs a play for each cluster, got 5 plays\."):
        source(folder, clusters=6).build(0)


@pytest.mark.shared_data
def test_the_plays(shared_data):
    tune, plays = (
        ShakespeareGPT(shared_data / "shakespeare", half="tune", clients=c).build(0).population
        for c in ("role", "play")
    )
    assert len(tune.clients) > 250
    assert 15 <= len(plays.clients) <= 21
    assert 20_000 < sum(len(plays.data(c)) for c in plays.clients) < 60_000
