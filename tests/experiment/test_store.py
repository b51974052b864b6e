import json
import math
import signal
import sqlite3

import numpy as np
import pytest

from partwise.core.errors import CheckpointError
from partwise.experiment.lock import writer_of
from partwise.experiment.rows import ClientRow, MetricRow, ReplyRow
from partwise.experiment.store import RECORD, RunStore
from toy_killed import python

REPLY = ReplyRow(1, 9, 0, 20, 640, 81, 79, 0.0, 0.25, 3.0, 3.5, 0.7, 0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def filled(folder):
    store = RunStore(folder)
    store.append_events([(0.5, "began", {"clients": [3, 1]}), (1.5, "refused", {"client": 3}), (2.5, "refused", None)])
    store.append_metrics(
        [MetricRow(1, 2.0, 100, 110, "auc", "central", 0.61), MetricRow(2, 4.0, 200, 220, "auc", "central", 0.67)]
    )
    store.append_metrics([(2, 4.0, 200, 220, "loss", "clients mean", 1.25)])
    store.append_clients(
        [ClientRow(1, 9, "auc", 0.5, 12), ClientRow(2, 4, "auc", 0.75, 31), ClientRow(2, 9, "auc", 0.25, 7)]
    )
    store.append_replies([REPLY, ReplyRow(2, 4, 1, 20, 320, 41, 39, 3.5, 3.75, 4.0, 4.5, 0.6, 1)])
    store.commit()
    return store


class TestRecord:
    def test_rows_come_back(self, folder):
        with filled(folder) as store:
            assert store.events() == [
                {"seq": 1, "time": 0.5, "kind": "began", "body": {"clients": [3, 1]}},
                {"seq": 2, "time": 1.5, "kind": "refused", "body": {"client": 3}},
                {"seq": 3, "time": 2.5, "kind": "refused", "body": None},
            ]
            assert [e["seq"] for e in store.events(kind="refused")] == [2, 3]
            assert store.metrics(name="auc", scope="central")[1] == {
                "version": 2,
                "time": 4.0,
                "uplink_bytes": 200,
                "downlink_bytes": 220,
                "name": "auc",
                "scope": "central",
                "value": 0.67,
            }
            assert [m["name"] for m in store.metrics()] == ["auc", "auc", "loss"]
            assert store.metrics(name="loss", scope="central") == []
            assert [c["value"] for c in store.clients(version=2)] == [0.75, 0.25]
            assert [c["version"] for c in store.clients(client=9, name="auc")] == [1, 2]
            assert store.replies(client=4) == store.replies(version=2)
            assert store.replies(version=2)[0]["staleness"] == 1
            assert len(store.replies()) == 2

    def test_it_is_a_plain_database_in_one_file(self, folder):
        filled(folder).close()
        assert [p.name for p in folder.iterdir()] == [RECORD]
        with sqlite3.connect(folder / RECORD) as db:
            assert db.execute("SELECT max(value) FROM metrics WHERE name = 'auc'").fetchone() == (0.67,)
        db.close()

    def test_numbers_that_sql_does_not_have(self, folder):
        with RunStore(folder) as store:
            store.append_metrics([(1, 0.0, 0, 0, "auc", "central", v) for v in (math.nan,)])
            store.append_metrics([(2, 0.0, 0, 0, "auc", "central", -math.inf)])
            store.append_events([(0.0, "x", {"nan": math.nan, 3: b"\0", "deep": [1, [2]]})])
            assert [repr(m["value"]) for m in store.metrics()] == ["nan", "-inf"]
            assert repr(store.events()[0]["body"]) == repr({"nan": math.nan, 3: b"\0", "deep": [1, [2]]})

    def test_numbers_of_other_libraries(self, folder):
        with RunStore(folder) as store:
            store.append_metrics([(np.int64(3), np.float32(0.5), np.int32(7), 8, "auc", "central", np.float64(0.25))])
            assert store.metrics()[0]["version"] == 3
            assert store.metrics()[0]["value"] == 0.25

    @pytest.mark.parametrize("row", [(1, 2), (1.5, 0.0, 0, 0, "auc", "central", 0.5), (1, "soon", 0, 0, "a", "b", 0.5)])
    def test_rows_of_another_kind(self, folder, row):
        with (
            RunStore(folder) as store,
            pytest.raises(TypeError, match=r"a MetricRow is version, time, .*, got \(.*\. Give these"),
        ):
            store.append_metrics([row])

    def test_rows_by_name(self, folder):
        with RunStore(folder) as store:
            store.append_clients([{"client": 4, "version": 2, "name": "auc", "examples": 5, "value": 0.5}])
            assert store.clients() == [{"version": 2, "client": 4, "name": "auc", "value": 0.5, "examples": 5}]
            with pytest.raises(
                TypeError, match=r"a ClientRow is version, client, name, value, examples, got \{'who': 4\}"
            ):
                store.append_clients([{"who": 4}])

    def test_a_metric_measured_again_replaces_the_old(self, folder):
        with RunStore(folder) as store:
            for value in (0.1, 0.3):
                store.append_metrics([(5, 1.0, 0, 0, "auc", "central", value)])
            assert [m["value"] for m in store.metrics()] == [0.3]

    def test_a_client_may_reply_twice_in_one_version(self, folder):
        with RunStore(folder) as store:
            store.append_replies([REPLY._replace(steps=s, loss=math.nan) for s in (2, 1)])
            assert [r["steps"] for r in store.replies()] == [2, 1]
            assert math.isnan(store.replies()[0]["loss"])

    def test_meta(self, folder):
        with RunStore(folder) as store:
            store.set_meta(name="first", seed=7, tags=["a"])
            store.set_meta(seed=8, schema_version=99)
        with RunStore(folder, "read") as store:
            assert store.meta() == {"name": "first", "schema_version": 2, "seed": 8, "tags": ["a"]}

    def test_events_are_numbered_across_openings(self, folder):
        with RunStore(folder) as store:
            assert store.last_seq() == 0
            assert store.append_events([(0.0, "a", 1), (0.0, "b", 2)]) == 2
        with RunStore(folder, "resume") as store:
            assert store.append_events([(0.0, "c", 3)]) == 3
            assert [e["kind"] for e in store.events()] == ["a", "b", "c"]

    def test_truncation(self, folder):
        with filled(folder) as store:
            store.append_events([(9.0, "uncommitted", None)])
            store.truncate_after(version=1)
            assert store.last_seq() == 4
            assert [m["version"] for m in store.metrics()] == [1]
            assert [c["version"] for c in store.clients()] == [1]
            assert [r["version"] for r in store.replies()] == [1]
            store.truncate_after(seq=1)
            assert [e["seq"] for e in store.events()] == [1]
            assert store.append_events([(9.0, "again", None)]) == 2
            store.truncate_after()
            assert len(store.events()) == 2

    def test_rows_after_an_event_go_with_it(self, folder):
        """A reply that came after a checkpoint may be of the checkpoint's own version."""
        with RunStore(folder) as store:
            reply = REPLY._replace(version=3)
            store.append_events([(0.0, "reply", None)])
            store.append_replies([reply])
            store.append_events([(1.0, "reply", None)])
            store.append_replies([reply._replace(client=5)])
            store.append_metrics([(3, 0.0, 0, 0, "auc", "central", 0.5)])
        with RunStore(folder, "resume") as store:
            store.truncate_after(seq=1, version=3)
            assert [r["client"] for r in store.replies()] == [9]
            assert store.metrics() == []

    def test_a_closed_one(self, folder):
        store = filled(folder)
        store.close()
        store.close()
        for use in (store.events, store.commit, lambda: store.append_events([(0.0, "x", None)]), store.truncate_after):
            with pytest.raises(CheckpointError, match=r"the record must be open, got a closed one\. Open it again\."):
                use()

    def test_a_bad_mode(self, folder):
        with pytest.raises(ValueError, match=r"mode is one of \('append', 'resume', 'read'\), got 'w'\. Choose one\."):
            RunStore(folder, "w")


class TestFollowing:
    def test_rows_by_their_numbers(self, folder):
        with filled(folder) as store:
            assert store.ends() == (3, 3, 2)
            assert store.event_at(2) == (1.5, "refused", b"\x81\xa6client\x03")
            assert store.event_at(4) is None
            store.append_events([(3.5, "reply", {"client": 1}), (4.5, "lost", {"client": 2})])
            assert [e["seq"] for e in store.events_between(1, 5)] == [2, 3, 5]
            assert store.events_between(1, 2) == [{"seq": 2, "time": 1.5, "kind": "refused", "body": {"client": 3}}]
            assert store.metrics_between(1, 2) == [(2, 4.0, 200, 220, "auc", "central", 0.67)]
            assert store.metrics_between(3, 9) == []

    def test_replies_by_client(self, folder):
        """Sums over the rows between, and the last of them as it is."""
        with filled(folder) as store:
            store.append_replies([REPLY._replace(version=3, uplink_bytes=5, arrived=9.5, loss=math.nan, staleness=2)])
            assert store.replies_between(0, 2) == [
                (4, 1, 41, 39, 1, 2, 2, 4.5, 1, 0.6),
                (9, 1, 81, 79, 0, 1, 1, 3.5, 0, 0.7),
            ]
            assert store.replies_between(0, 3)[1] == (9, 2, 86, 158, 2, 3, 3, 9.5, 2, None)
            assert store.replies_between(2, 3) == [(9, 1, 5, 79, 2, 3, 3, 9.5, 2, None)]

    def test_of_nothing(self, folder):
        with RunStore(folder) as store:
            assert store.ends() == (0, 0, 0)
            assert store.replies_between(0, 9) == []

    def test_an_event_that_cannot_be_read(self, folder):
        filled(folder).close()
        with sqlite3.connect(folder / RECORD) as db:
            db.execute("UPDATE events SET body = x'93'")
        db.close()
        with (
            RunStore(folder, "read") as store,
            pytest.raises(
                CheckpointError, match=r"reading the record needs a whole record\.sqlite, got: malformed event"
            ),
        ):
            store.events()


class TestKilled:
    def test_what_was_committed_survives_and_the_lock_does_not(self, folder):
        script = (
            "import sys; from partwise.experiment.store import RunStore\n"
            "s = RunStore(sys.argv[1])\n"
            "s.append_events([(1.0, 'kept', i) for i in range(500)]); s.commit(); s.append_events([(2.0, 'not', 1)])\n"
            "print('ready', flush=True); sys.stdin.read()\n"
        )
        child = python(script, folder)
        assert writer_of(folder) == child.pid
        with pytest.raises(CheckpointError) as caught:
            RunStore(folder)
        assert str(caught.value) == (
            f"RunStore('{folder}'): another process is writing this run: pid {child.pid}. Wait for it, or end it."
        )
        with RunStore(folder, "read") as reader:
            assert len(reader.events()) == 500
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert writer_of(folder) is None
        with RunStore(folder, "read") as reader:
            assert reader.last_seq() == 500
        with RunStore(folder, "resume") as store:
            assert [e["kind"] for e in store.events()] == ["kept"] * 500
        assert [p.name for p in folder.iterdir()] == [RECORD]

    def test_a_durable_commit_is_in_the_file_itself(self, folder):
        store = filled(folder)
        store.commit(durable=True)
        copy = folder.parent / "copy"
        copy.mkdir()
        (copy / RECORD).write_bytes((folder / RECORD).read_bytes())
        with RunStore(copy, "read") as found:
            assert found.last_seq() == 3
        store.close()

    def test_a_reader_does_not_hinder_the_writer(self, folder):
        store = filled(folder)
        with RunStore(folder, "read") as reader:
            store.append_events([(5.0, "more", None)])
            assert reader.last_seq() == 3
            store.commit()
            assert reader.last_seq() == 4
            store.close()  # stays in write-ahead mode, as somebody reads
            assert reader.last_seq() == 4
        with RunStore(folder, "read") as reader:
            assert reader.last_seq() == 4

    def test_an_error_inside_keeps_what_was_appended(self, folder):
        def fail():
            with RunStore(folder) as store:
                store.append_events([(0.0, "a", None)])
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        with RunStore(folder, "read") as store:
            assert store.last_seq() == 1


class TestFaults:
    @pytest.mark.parametrize("mode", ["resume", "read"])
    def test_missing(self, folder, mode):
        with pytest.raises(
            CheckpointError, match=r"there must be a run's record\.sqlite, got no folder\. Name a run's"
        ):
            RunStore(folder, mode)
        folder.mkdir()
        with pytest.raises(CheckpointError, match=r"got a folder without one"):
            RunStore(folder, mode)
        assert list(folder.iterdir()) == []

    def test_foreign(self, folder):
        folder.mkdir()
        with sqlite3.connect(folder / RECORD) as db:
            db.execute("CREATE TABLE photos (id)")
        db.close()
        for mode in ("append", "resume", "read"):
            with pytest.raises(CheckpointError, match=r"must be a run's record, got another database\. Name a run's"):
                RunStore(folder, mode)
        assert [p.name for p in folder.iterdir()] == [RECORD]

    def test_empty(self, folder):
        """As a process leaves it that is killed before the first statement is through; it can be begun."""
        folder.mkdir()
        (folder / RECORD).touch()
        with pytest.raises(CheckpointError, match=r"got an empty one: the run was killed before it began"):
            RunStore(folder, "read")
        assert (folder / RECORD).stat().st_size == 0
        RunStore(folder).close()

    def test_no_database_at_all(self, folder):
        folder.mkdir()
        (folder / RECORD).write_text("notes " * 1000)
        with pytest.raises(
            CheckpointError, match=r"opening the record needs a whole record\.sqlite, got: file is not a"
        ):
            RunStore(folder)

    def test_another_schema(self, folder):
        filled(folder).close()
        with sqlite3.connect(folder / RECORD) as db:
            db.execute("UPDATE meta SET value = '1' WHERE key = 'schema_version'")
        db.close()
        with pytest.raises(
            CheckpointError, match=r"must have schema version 2, got 1\. Use the version of Partwise that"
        ):
            RunStore(folder, "read")

    def test_damaged(self, folder):
        filled(folder).close()
        data = bytearray((folder / RECORD).read_bytes())
        data[4096:] = bytes(255 for _ in data[4096:])
        (folder / RECORD).write_bytes(data)
        with pytest.raises(CheckpointError, match=r"needs a whole record\.sqlite, got: .*malformed.*Restore the file"):
            RunStore(folder, "read").events()

    @pytest.mark.parametrize(
        ("there", "damaged"),
        [
            (b'"a value"', b'"a v\xfflue"'),  # text that is none
            (b'"a value"', b'"a value '),  # no JSON
            (b"tablemetameta", b"table\xffetameta"),  # what SQLite says of it is no text
        ],
    )
    def test_a_damaged_fact_or_schema(self, folder, there, damaged):
        with RunStore(folder) as store:
            store.set_meta(fact="a value")
        data = (folder / RECORD).read_bytes()
        assert there in data
        (folder / RECORD).write_bytes(data.replace(there, damaged))
        with pytest.raises(CheckpointError, match=r"needs a whole record\.sqlite, got: .*Restore the file"):
            RunStore(folder, "read").meta()

    def test_full_disk(self, folder):
        with filled(folder) as store:
            store._db.execute("PRAGMA max_page_count = 20")  # SQLite then says what it says on a full disk
            store.append_events([(0.0, "big", b"x" * 100_000)])
            with pytest.raises(CheckpointError) as caught:
                store.commit()
            assert str(caught.value) == (
                f"RunStore('{folder}'): writing events needs room on the disk, got: database or disk is full. "
                "What was committed before is safe. Free some space and resume the run."
            )
            assert store.last_seq() == 3

    def test_writing_what_is_open_for_reading(self, folder):
        filled(folder).close()
        store = RunStore(folder, "read")
        with pytest.raises(
            CheckpointError, match=r"needs a folder that it may write to, got: attempt to write a readonly"
        ):
            store.append_events([(0.0, "x", None)])
        store.close()

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            (
                "database is locked",
                r"reading needs the database for itself for a moment, got: .*locked\. Close the prog",
            ),
            (
                "disk I/O error",
                r"reading needs a disk that works, got: disk I/O error\. .*committed before is safe\. Look",
            ),
        ],
    )
    def test_errors_that_cannot_be_provoked(self, folder, text, sentence):
        class Broken:
            in_transaction = False

            def execute(self, *_):
                raise sqlite3.OperationalError(text)

        store = RunStore(folder)
        store._db, whole = Broken(), store._db
        with pytest.raises(CheckpointError, match=sentence.replace("reading", "reading the record")):
            store.metrics()
        store._db = whole
        store.close()


def test_the_record_needs_no_torch(folder):
    script = (
        "import sys; from partwise.experiment import store, rundir\n"
        "with store.RunStore(sys.argv[1]) as s: s.append_events([(0.0, 'a', None)])\n"
        "rundir.environment(); rundir.list_runs('.'); assert 'torch' not in sys.modules; print('ready')\n"
    )
    child = python(script, folder)
    assert child.wait() == 0
    child.stdout.close()
    with RunStore(folder, "read") as store:
        assert json.loads(json.dumps(store.events()))[0]["kind"] == "a"
