"""A run that keeps a journal: what is in it, that kills leave no trace, and that tampering is found and located."""

import errno
import hashlib
import json
import os
import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgpack
import pytest
import torch
from safetensors.torch import load_file, save_file

from partwise.aggregators import Mean, Watch
from partwise.algorithms import FedSubAvg
from partwise.attacks import AfterRounds, Hostile, SignFlip
from partwise.core.codec import encode
from partwise.core.detect import Verdict
from partwise.core.errors import CheckpointError, CompositionError, DataError, ProtocolError
from partwise.core.index import Whole
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update
from partwise.experiment.dump import dump
from partwise.experiment.experiment import Experiment
from partwise.experiment.journal_check import check_journal
from partwise.experiment.journaling import JOURNAL, Journaling, Keeper
from partwise.experiment.noted import Noted
from partwise.experiment.recorder import Silent
from partwise.experiment.spec import loads
from partwise.experiment.store import RECORD, RunStore
from partwise.journal.entries import digest_of
from partwise.observers import CoverageLimit
from partwise.runtimes import Simulate
from partwise.schedulers import FedBuff, Synchronous
from toy_cli import TINY, call
from toy_experiments import LOCAL, experiment
from toy_hostile import Stops
from toy_hostile import experiment as images
from toy_killed import attempt

pytest.importorskip("cryptography")
from partwise.channels import Masked
from toy_journal import forged_line

SEEN: dict[tuple[int, int], str] = {}


@dataclass(frozen=True)
class Accuses:
    """Remembers what it was shown, and accuses client 1 from the second version on, client 2 of being unreliable."""

    def init(self, params, census):
        return 0

    def judge(self, updates, replies, state, params):
        for update, reply in zip(updates, replies, strict=True):
            SEEN[state, reply.client] = hashlib.sha256(bytes(encode(update))).hexdigest()
        found = [Verdict(1, "sign flip", "cosine -1", state > 1, False), Verdict(2, "unreliable", "far", True, False)]
        return (found if state else []), state + 1


def made(folder, which="residuals", **more) -> Experiment:
    settings = {"stake": 1000, "pool": 50_000, "payout": 8000, **more}
    return experiment(which, Simulate(), journal=Journaling(folder / "operator.key", **settings))


def entries(run):
    return [json.loads(line)["entry"] for line in (run / JOURNAL).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is over, which tests copy before they change it."""
    folder = tmp_path_factory.mktemp("whole")
    made(folder).run(folder / "run")
    return folder / "run"


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


# ---- what is written -------------------------------------------------------------------------------------------------


def test_entries_of_a_run(tmp_path):
    SEEN.clear()
    settings = Journaling(tmp_path / "key", stake=1000, pool=20_000, payout=8000)
    images(4, aggregator=Watch(Accuses(), Mean("holders")), hostile=None, journal=settings).run(tmp_path / "run")
    found = entries(tmp_path / "run")
    assert [e["type"] for e in found[:1]] == ["genesis"]
    assert [e["type"] for e in found[1:17]] == ["register", "deposit"] * 8
    assert [e["type"] for e in found[17:]] == (["commit"] * 8 + ["reveal"] * 8 + ["evaluate", "settle"]) * 4
    shown = {(e["round"], e["author"]): e["payload"]["digest"] for e in found if e["type"] == "reveal"}
    assert shown == {(version, f"client-{client}"): digest for (version, client), digest in SEEN.items()}
    scores = [e["payload"]["scores"] for e in found if e["type"] == "evaluate"]
    assert [s["client-0"] for s in scores] == [1_000_000] * 4
    assert [s["client-1"] for s in scores] == [1_000_000, 300_000, 0, 0]
    assert [s["client-2"] for s in scores] == [1_000_000, 300_000, 300_000, 300_000]
    assert [e["payload"]["payout"] for e in found if e["type"] == "settle"] == [8000, 8000, 4000, 0]
    standing = {who.author: who for who in check_journal(tmp_path / "run").standings}
    # by hand: reputation <- (900000 r + 100000 score) / 10^6 from 500000; a quarter of the stake per slash
    assert standing["client-0"][1:] == (4, 671_950, 1000, 1000 + 1334 + 667)
    assert standing["client-1"][1:] == (4, 425_250, 563, 1000)
    assert standing["client-2"][1:] == (4, 482_250, 1000, 1000)


def test_journal_changes_nothing_of_the_run(whole, tmp_path):
    plain = experiment("residuals", Simulate()).run(tmp_path / "plain")
    assert (plain.folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("around", ["journal", "hostile", "observer"])
def test_scaled_replies_of_submodels_are_added_up_alike_behind_what_looks_at_each(around, tmp_path):
    """FedBuff scales what is stale, and a mean over holders divides by the scales: also where each is looked at."""
    more = {
        "journal": {"journal": Journaling(tmp_path / "key")},
        "hostile": {"hostile": Hostile(SignFlip(), share=0.5, when=AfterRounds(1000))},
        "observer": {"aggregator": Watch(CoverageLimit(0.99), Mean("holders"))},
    }[around]
    parts = {"algorithm": FedSubAvg("count", LOCAL), "scheduler": FedBuff(3, 5, versions=6)}
    plain = experiment("FedBuff", Simulate(), **parts).run(tmp_path / "plain")
    with RunStore(plain.folder, "read") as store:
        assert len({scale for event in store.events("commit") for scale in event["body"].get("scales", ())}) > 1
    seen = experiment("FedBuff", Simulate(), **parts, **more).run(tmp_path / "seen")
    assert (plain.folder / "model.safetensors").read_bytes() == (seen.folder / "model.safetensors").read_bytes()


def test_digest_is_of_what_the_client_sent_whatever_its_scale():
    """By hand: (1 * 2 + 0.25 * 8) / 2."""
    updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([v])}) for v in (2.0, 8.0)]
    replies = [ReplyInfo(0, 0, 1, 1, 1), ReplyInfo(1, 1, 0, 1, 1, scale=0.25)]
    params, part = {"w": torch.zeros(1)}, Noted(Mean("cohort"))
    total, state = part.reduce(updates, part.init(params, Census(2)), params, replies)
    assert total.values()["w"].tolist() == [2.0]
    assert part.told(state)["digests"] == [[client, digest_of(updates[client])] for client in (0, 1)]


def test_streams_and_repeated_replies(tmp_path):
    """SCAFFOLD sends two updates, and under FedBuff a client may be in a commit twice."""
    for which in ("control variates", "FedBuff"):
        made(tmp_path, which).run(tmp_path / which)
        assert check_journal(tmp_path / which).is_whole
    reveals = [e["payload"] for e in entries(tmp_path / "control variates") if e["type"] == "reveal"]
    for payload in reveals:
        assert [part.split()[0] for part in payload["updates"]] == ["model", "control"]
        assert payload["digest"] == hashlib.sha256("\n".join(payload["updates"]).encode()).hexdigest()


def test_commit_that_came_to_nothing_is_not_in_it(tmp_path):
    keeper = Keeper(Journaling(tmp_path / "key"), tmp_path)
    keeper.told({"stream": "model", "digests": [[3, "a" * 64]]})
    keeper.skipped()
    keeper.told({"stream": "model", "digests": [[5, "b" * 64]]})
    keeper.committed({"w": torch.ones(2)})
    assert {e["author"] for e in entries(tmp_path)} == {"server", "client-5"}
    keeper.committed({"w": torch.ones(2)})  # a version without clients is settled all the same
    assert [e["type"] for e in entries(tmp_path)][-2:] == ["settle", "settle"]


def test_copy_is_slashed_once_and_not_paid(tmp_path):
    keeper = Keeper(Journaling(tmp_path / "key", stake=1000, payout=900), tmp_path)
    first = [[2, "a" * 64], [4, "b" * 64], [7, "a" * 64]]
    for digests in (first, [[2, "c" * 64], [4, "d" * 64], [7, "b" * 64]]):
        keeper.told({"stream": "model", "digests": digests})
        keeper.committed({"w": torch.ones(2)})
    scores = [e["payload"]["scores"] for e in entries(tmp_path) if e["type"] == "evaluate"]
    assert scores == [{"client-2": 1_000_000, "client-4": 1_000_000, "client-7": 300_000}] * 2
    payouts = [e["payload"]["payouts"] for e in entries(tmp_path) if e["type"] == "settle"]
    assert payouts == [{"client-2": 450, "client-4": 450}] * 2
    books = keeper._open().books
    assert (books.stakes["client-7"], books.treasury) == (563, 437)  # a quarter of 1000, and of 750


def test_copy_of_one_that_is_confirmed_as_well_is_slashed_once(tmp_path):
    """As Sybils are: all send the same, and an observer has confirmed them."""
    keeper = Keeper(Journaling(tmp_path / "key", stake=1000), tmp_path)
    confirmed = [{"client": 7, "kind": "sign flip", "confirmed": True}]
    keeper.told({"stream": "model", "digests": [[2, "a" * 64], [7, "a" * 64]], "suspects": confirmed})
    keeper.committed({"w": torch.ones(2)})
    books = keeper._open().books
    assert (books.stakes["client-7"], books.treasury) == (750, 250)


# ---- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["residuals", "FedBuff"])
def test_killed_and_resumed_it_has_the_same_bytes(which, tmp_path):
    made(tmp_path, which).run(tmp_path / "undisturbed")
    draw, killed = random.Random(4), 0
    while killed < 3:
        if (tmp_path / "killed").exists() and not (tmp_path / "killed" / RECORD).exists():
            shutil.rmtree(tmp_path / "killed")
        if attempt(made(tmp_path, which), tmp_path / "killed", draw.uniform(0.1, 1.0)):
            assert (tmp_path / "killed" / JOURNAL).read_bytes() == (tmp_path / "undisturbed" / JOURNAL).read_bytes()
            shutil.rmtree(tmp_path / "killed")
        else:
            killed += 1
    while not attempt(made(tmp_path, which), tmp_path / "killed", None):
        pass
    assert (tmp_path / "killed" / JOURNAL).read_bytes() == (tmp_path / "undisturbed" / JOURNAL).read_bytes()
    assert check_journal(tmp_path / "killed").is_whole


def test_interrupted_in_the_middle_of_a_line_and_resumed(tmp_path):
    settings = Journaling(tmp_path / "key")
    images(journal=settings).run(tmp_path / "whole")
    images(journal=settings).run(tmp_path / "part", progress=Stops())
    assert check_journal(tmp_path / "part").rounds == 3
    with (tmp_path / "part" / JOURNAL).open("a") as file:
        file.write('{"by":"01')
    images(journal=settings).run(tmp_path / "part", resume=True)
    assert (tmp_path / "part" / JOURNAL).read_bytes() == (tmp_path / "whole" / JOURNAL).read_bytes()


def test_resuming_with_a_journal_that_is_no_text_is_refused_with_the_line(tmp_path):
    made, folder = experiment("residuals", Simulate(), journal=Journaling(tmp_path / "key")), tmp_path / "run"
    made.run(folder)
    written = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(b"\xff" + written[1:])
    with pytest.raises(ProtocolError, match=r"must be whole, got tampering at line 1: "):
        made.run(folder, resume=True)


def test_a_full_disk_is_said_of_the_journal_too(tmp_path, monkeypatch):
    kept = Path.open

    def full(self, mode="r", *args, **more):
        if self.name == JOURNAL and mode == "a":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return kept(self, mode, *args, **more)

    made = experiment("residuals", Simulate(), journal=Journaling(tmp_path / "key"))
    with monkeypatch.context() as during:
        during.setattr(Path, "open", full)
        with pytest.raises(CheckpointError, match=r"journal\.jsonl: needs room on a disk it may write to, got: No"):
            made.run(tmp_path / "run")


def test_a_disk_that_is_full_when_the_journal_is_to_be_on_it(tmp_path, monkeypatch):
    kept, journal = os.fsync, tmp_path / "run" / JOURNAL

    def full(handle):
        if journal.exists() and os.path.samestat(os.fstat(handle), journal.stat()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        kept(handle)

    made = experiment("residuals", Simulate(), journal=Journaling(tmp_path / "key"))
    with monkeypatch.context() as during:
        during.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"journal\.jsonl: needs room on a disk it may write to, got: No"):
            made.run(tmp_path / "run")


@pytest.mark.parametrize("version", [1, 3], ids=["early", "at the last version"])
def test_a_journal_that_is_taken_away_while_the_run_goes_on(version, tmp_path):
    class Takes(Silent):
        def committed(self, made, *more):
            if made == version:
                (tmp_path / "run" / JOURNAL).unlink()

    settings = Journaling(tmp_path / "key")
    with pytest.raises(CheckpointError, match=r"entries that were written before, got no file: it was taken away"):
        experiment("residuals", Simulate(), scheduler=Synchronous(2, rounds=3), journal=settings).run(
            tmp_path / "run", progress=Takes()
        )


def test_resuming_a_tampered_run_is_refused(tmp_path):
    settings = Journaling(tmp_path / "key")
    images(journal=settings).run(tmp_path / "part", progress=Stops())
    path = tmp_path / "part" / JOURNAL
    before = path.read_text()
    path.write_text(before.replace('"amount":1000000', '"amount":1000001', 1))
    with pytest.raises(ProtocolError, match="must be whole, got tampering at line 3: "):
        images(journal=settings).run(tmp_path / "part", resume=True)
    path.write_text("".join(before.splitlines(keepends=True)[:-1]))
    with pytest.raises(CheckpointError, match=r"must have the 71 entries of the checkpoint, got 70\."):
        images(journal=settings).run(tmp_path / "part", resume=True)
    path.write_text(before)
    with pytest.raises(CheckpointError, match="was begun with another key than that of"):
        images(journal=Journaling(tmp_path / "other")).run(tmp_path / "part", resume=True)


# ---- tampering -------------------------------------------------------------------------------------------------------


def test_every_random_change_of_a_byte_is_found_and_located(run):
    draw, path = random.Random(9), run / JOURNAL
    written = path.read_bytes()
    starts = [0, *(at + 1 for at, byte in enumerate(written) if byte == ord("\n"))]
    for _ in range(60):
        at = draw.randrange(len(written))
        line = max(number for number, start in enumerate(starts, 1) if start <= at)
        other = draw.choice([b for b in range(32, 127) if b != written[at]])
        path.write_bytes(written[:at] + bytes([other]) + written[at + 1 :])
        assert check_journal(run).fault.startswith(f"{JOURNAL}, line {line}: "), (at, other)
    for line, end in ((2, starts[2] - 1), (len(starts) - 1, len(written) - 1)):
        for other in (13, 11, 12, 28, 29, 30, 133):
            path.write_bytes(written[:end] + bytes([other]) + written[end + 1 :])
            assert check_journal(run).fault.startswith(f"{JOURNAL}, line {line}: "), (end, other)


def test_false_checkpoint_by_who_has_the_key_is_found_by_its_line(run, whole):
    path, key = run / JOURNAL, bytes.fromhex((whole.parent / "operator.key").read_text())
    lines = path.read_text().splitlines()
    lines.append(forged_line(lines, check_journal(run).rounds, "checkpoint", "server", {"root": "0" * 64}, key))
    path.write_text("".join(line + "\n" for line in lines))
    says = f"{JOURNAL}, line {len(lines)}: entry {len(lines) - 1} (checkpoint): root must be that of the "
    assert check_journal(run).fault.startswith(says)


def record_changed(run, change):
    """Change the first `told` of version 2 in the record."""
    with closing(sqlite3.connect(run / RECORD)) as db, db:
        for seq, body in db.execute("SELECT seq, body FROM events WHERE kind = 'told'").fetchall():
            fields = msgpack.unpackb(body, strict_map_key=False)
            if fields["version"] == 2:
                change(fields)
                db.execute("UPDATE events SET body = ? WHERE seq = ?", (msgpack.packb(fields), seq))
                return


def test_record_that_says_otherwise_is_found_by_version_and_client(run):
    assert check_journal(run).is_whole

    def change(fields):
        fields["digests"][1][1] = "0" * 64
        assert fields["digests"][1][0] == 1

    record_changed(run, change)
    settled = [at for at, e in enumerate(entries(run), 1) if e["type"] == "settle"][2]
    assert check_journal(run).fault == (
        f"version 3: the record and {JOURNAL}, which settles it in line {settled}, differ in what client-1 sent."
    )


def test_client_that_is_missing_in_the_record_is_found(run):
    record_changed(run, lambda fields: fields["digests"].pop())
    assert "version 3: the record" in check_journal(run).fault


def test_another_model_is_found(run):
    model = load_file(run / "model.safetensors")
    name = min(model)
    model[name].view(-1)[0] += 1e-6
    save_file(model, run / "model.safetensors")
    last = len(entries(run))
    assert check_journal(run).fault == (
        f"model.safetensors is not the model of the last version, which line {last} of {JOURNAL} has."
    )


def test_missing_end_and_missing_journal_are_found(run):
    whole_run, path = check_journal(run), run / JOURNAL
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert (
        check_journal(run).fault == f"The record has {whole_run.rounds} versions, and {JOURNAL} {whole_run.rounds - 1}."
    )
    assert check_journal(run, head=whole_run.head).fault.endswith("ends too early, or in another entry")
    path.unlink()
    assert check_journal(run).fault == f"{JOURNAL} is missing, and the run kept one."


def test_another_journal_is_found_by_the_operators_key(run, tmp_path):
    """Whoever can write into the folder can make a run anew; only what is noted elsewhere shows it."""
    key = check_journal(run).operator
    made(tmp_path / "forger", payout=1).run(tmp_path / "forged")
    assert check_journal(tmp_path / "forged").is_whole
    assert check_journal(tmp_path / "forged", operator=key).fault.endswith("has another operator's key")
    shutil.copy(tmp_path / "forged" / JOURNAL, run / JOURNAL)
    assert check_journal(run).fault.endswith("has another operator's key")


# ---- the command line, specifications and refusals -------------------------------------------------------------------


def test_command(tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text(TINY + f'[journal]\nsecret = "{tmp_path / "operator.key"}"\npayout = 30\n')
    call("run", spec, "--root", tmp_path / "runs")
    (run,) = (tmp_path / "runs").iterdir()
    said, _ = call("journal", run)
    assert "Whole: " in said
    assert "4 versions." in said
    noted = dict(line.split() for line in said.splitlines() if line.startswith(("head", "operator")))
    head, operator = noted["head"], noted["operator"]
    assert "Note both elsewhere" not in call("journal", run, "--head", head, "--operator", operator)[0]
    told = json.loads(call("journal", run, "--json")[0])
    assert (told["head"], told["fault"]) == (head, "")
    assert sum(who["paid"] for who in told["standings"]) == 120
    path = run / JOURNAL
    path.write_text(path.read_text().replace('"pool":', '"pooI":', 1))
    _, wrong = call("journal", run, code=1)
    assert f"was tampered with. {JOURNAL}, line 1: " in wrong
    spec.write_text(TINY)
    call("run", spec, "--root", tmp_path / "others")
    (without,) = (tmp_path / "others").iterdir()
    assert "must be a run that kept a journal, got none" in call("journal", without, code=3)[1]


def test_specification_says_it(tmp_path):
    described = loads(TINY + f'[journal]\nsecret = "{tmp_path / "operator.key"}"\nstake = 7\n')
    assert described.journal == Journaling(tmp_path / "operator.key", stake=7)
    assert loads(dump(described)).journal == described.journal


def test_refusals(tmp_path):
    with pytest.raises(CompositionError, match=r"writes down the digest of each update, but Masked\(.*reveals only"):
        experiment("residuals", Simulate(), channel=Masked(), journal=Journaling(tmp_path / "key")).build()
    with pytest.raises(CompositionError, match=r"got a privacy guarantee that hides it\. Leave one of the two out"):
        Journaling(tmp_path / "key").noted({}, images().channel, is_private=True)
    with pytest.raises(ValueError, match=r"Journaling\(stake=-1\): must be a whole number from 0 to 2\^52, got -1\."):
        Journaling(tmp_path / "key", stake=-1)
    (tmp_path / "short").write_text("abcd")
    with pytest.raises(DataError, match=r"must hold 64 hexadecimal digits, got 4\. Name another\."):
        Journaling(tmp_path / "short").key()
    (tmp_path / "odd").write_text("no digits")
    with pytest.raises(DataError, match="must be a file with 64 hexadecimal digits, or a place for a new one, got Val"):
        Journaling(tmp_path / "odd").key()


def test_key_is_made_once_and_for_its_owner_only(tmp_path):
    settings = Journaling(tmp_path / "keys" / "operator.key")
    assert settings.key() == settings.key()
    assert (tmp_path / "keys" / "operator.key").stat().st_mode & 0o077 == 0


# ---- what a round costs ----------------------------------------------------------------------------------------------


class Compared(int):
    """A client's number that counts how often it is compared with another."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return int(self) == other

    __hash__ = int.__hash__


def test_a_round_looks_at_each_update_a_few_times_however_many_there_are(tmp_path):
    cohort = 60
    keeper = Keeper(Journaling(tmp_path / "operator.key"), tmp_path)
    digests = [[Compared(client), hashlib.sha256(bytes([client])).hexdigest()] for client in range(cohort)]
    Compared.times = 0
    keeper.told({"stream": "model", "digests": digests})
    keeper.committed({"w": torch.zeros(3)})
    assert Compared.times < 10 * cohort  # and not cohort * cohort
    shown = [entry["payload"] for entry in entries(tmp_path) if entry["type"] == "reveal"]
    assert [payload["digest"] for payload in shown] == [digest for _, digest in digests]
    assert [payload["updates"] for payload in shown] == [[f"model {digest}"] for _, digest in digests]
