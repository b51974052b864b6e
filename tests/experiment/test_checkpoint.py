import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgpack
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import partwise
from partwise.core.codec import register
from partwise.core.errors import CheckpointError
from partwise.experiment.checkpoint import Checkpoints


@register
class Worn(NamedTuple):
    control: torch.Tensor
    seen: int


def params(scale, rows=3000):
    return {
        "table.weight": torch.arange(rows * 8.0).reshape(rows, 8) * scale,
        "head.bias": torch.tensor([scale, -scale]),
    }


def files(folder):
    return sorted(p.name for p in (folder / "objects").iterdir())


def wreck(path, at=-9):
    data = bytearray(path.read_bytes())
    data[at] ^= 64
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


class Unreadable:
    """What the codec would refuse: proves that nobody tried to encode it."""


class TestSaveAndLoad:
    def test_entries_come_back(self, folder):
        entries = {"server": {"params": params(1.5), "rng": 2**80}, "client/3": Worn(torch.ones(4), 7), "none": None}
        path = Checkpoints(folder).save(12, entries)
        assert path.is_file()
        saved = Checkpoints(folder).load()
        assert (saved.version, saved.notes, set(saved.entries), len(saved.entries)) == (12, (), set(entries), 3)
        assert torch.equal(saved.entries["server"]["params"]["table.weight"], params(1.5)["table.weight"])
        assert saved.entries["server"]["rng"] == 2**80
        assert saved.entries["client/3"].seen == 7
        assert saved.entries["none"] is None
        with pytest.raises(KeyError):
            saved.entries["absent"]

    def test_every_kind_of_tensor_in_a_file_of_its_own(self, folder):
        tree = {
            "odd": torch.arange(70_001, dtype=torch.uint8),
            "bf": torch.ones(3, dtype=torch.bfloat16),
            "c": torch.tensor([1 + 2j]),
            "np": np.arange(4, dtype=np.int16),
            "scalar": torch.tensor(2.5, dtype=torch.float64),
            "empty": torch.zeros(0, 3),
            "a/b": torch.tensor([1.0]),
            "a": {"b": torch.tensor([2.0])},
            "__metadata__": torch.tensor([3]),
        }
        Checkpoints(folder).save(0, {"x": tree})
        back = Checkpoints(folder).load().entries["x"]
        assert list(back) == list(tree)
        for name in ("odd", "bf", "c", "scalar", "empty", "a/b", "__metadata__"):
            assert back[name].dtype == tree[name].dtype
            assert torch.equal(back[name], tree[name])
        assert back["np"].dtype == np.int16
        assert back["a"]["b"].tolist() == [2.0]
        back["odd"].fill_(1)  # views are writable, and one is not the other

    def test_the_safetensors_library_opens_a_model_by_its_names(self, folder):
        Checkpoints(folder).save(3, {"params": params(2.0)})
        (name,) = files(folder)
        found = load_file(folder / "objects" / name)
        assert set(found) == {"table.weight", "head.bias"}
        assert torch.equal(found["table.weight"], params(2.0)["table.weight"])
        with safe_open(folder / "objects" / name, "pt") as file:
            assert list(file.metadata()) == ["partwise"]

    def test_the_same_content_is_one_file_and_the_same_file(self, folder, tmp_path):
        first, other = Checkpoints(folder), Checkpoints(tmp_path / "other")
        first.save(1, {"a": params(1.0), "b": params(1.0)})
        other.save(1, {"b": params(1.0)})
        assert files(folder) == files(tmp_path / "other")
        assert len(files(folder)) == 1

    def test_the_manifest_is_plain_msgpack(self, folder):
        path = Checkpoints(folder).save(5, {"a": 1})
        envelope = msgpack.unpackb(path.read_bytes())
        body = msgpack.unpackb(envelope["body"])
        assert envelope["partwise checkpoint"] == 1
        assert (body["version"], body["entries"][0][0]) == (5, "a")

    def test_versions_are_kept_in_the_order_of_saving(self, folder):
        checkpoints = Checkpoints(folder, keep=3)
        for version in (4, 9, 30, 55):
            checkpoints.save(version, {"v": version})
        assert checkpoints.versions() == [9, 30, 55]
        assert Checkpoints(folder).load(30).entries["v"] == 30
        assert Checkpoints(folder).load().version == 55
        assert len(files(folder)) == 3

    def test_bad_keep(self, folder):
        with pytest.raises(ValueError, match=r"Checkpoints\('.*'\): keep must be at least 1, got 0\. Use keep=2\."):
            Checkpoints(folder, keep=0)


class TestUnchanged:
    def test_nothing_is_encoded_or_written_for_it(self, folder):
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, {"params": params(1.0), "client/1": {"n": 1}, "client/2": {"n": 2}})
        before = set(files(folder))
        checkpoints.save(2, {"params": Unreadable(), "client/2": {"n": 20}}, unchanged=["params", "client/1"])
        assert len(set(files(folder)) - before) == 1
        entries = Checkpoints(folder).load().entries
        assert (entries["client/1"], entries["client/2"]) == ({"n": 1}, {"n": 20})
        assert torch.equal(entries["params"]["head.bias"], torch.tensor([1.0, -1.0]))

    def test_it_refers_to_the_checkpoint_that_was_loaded(self, folder):
        checkpoints = Checkpoints(folder, keep=3)
        for version in (10, 20, 30):
            checkpoints.save(version, {"state": version, "v": version})
        again = Checkpoints(folder, keep=3)
        again.load(10)
        again.save(15, {"v": 15}, unchanged=["state"])
        assert dict(Checkpoints(folder).load().entries) == {"state": 10, "v": 15}
        assert again.versions() == [10, 15]  # 20 and 30 never happened

    def test_it_must_be_in_the_checkpoint_before(self, folder):
        checkpoints = Checkpoints(folder)
        with pytest.raises(
            ValueError, match=r"unchanged entry 'a' must be in the checkpoint before, got no checkpoint"
        ):
            checkpoints.save(1, {}, unchanged=["a"])
        checkpoints.save(1, {"b": 1})
        with pytest.raises(ValueError, match=r"unchanged entry 'a' must be .*, got one without\."):
            checkpoints.save(2, {}, unchanged=["a"])

    def test_many_clients_in_few_files(self, folder):
        checkpoints = Checkpoints(folder)
        clients = {f"client/{i}": {"n": i} for i in range(500)}
        checkpoints.save(0, {"server": params(1.0), **clients})
        assert len(files(folder)) == 2
        for version in range(1, 90):
            changed = {f"client/{(version * 7 + i) % 500}": {"n": -version} for i in range(3)}
            clients |= changed
            kept = ["server", *(k for k in clients if k not in changed)]
            checkpoints.save(version, changed, unchanged=kept)
            assert len(files(folder)) <= 2 + 2 * 32
        saved = Checkpoints(folder).load()
        assert {k: saved.entries[k] for k in clients} == clients

    def test_a_pack_that_is_mostly_out_of_date_is_folded(self, folder):
        checkpoints = Checkpoints(folder, keep=1)
        checkpoints.save(0, {f"c{i}": bytes([i]) * 100 for i in range(10)})
        (old,) = files(folder)
        checkpoints.save(1, {f"c{i}": i for i in range(6)}, unchanged=[f"c{i}" for i in range(6, 10)])
        assert len(files(folder)) == 1
        assert files(folder) != [old]
        assert Checkpoints(folder).load().entries["c9"] == bytes([9]) * 100

    def test_a_damaged_pack_is_not_folded(self, folder):
        checkpoints = Checkpoints(folder)
        checkpoints.save(0, {f"c{i}": bytes([i]) * 100 for i in range(10)})
        wreck(folder / "objects" / files(folder)[0])
        with pytest.raises(CheckpointError, match=r"\.pack does not have the digest it is named by\. Restore it from"):
            checkpoints.save(1, {f"c{i}": i for i in range(6)}, unchanged=[f"c{i}" for i in range(6, 10)])


class TestKilled:
    def test_every_moment_of_a_save_leaves_a_whole_checkpoint(self, folder, tmp_path, monkeypatch):
        """Before each call that touches the disk, the folder is copied: what a kill at that moment would leave."""
        checkpoints = Checkpoints(folder, keep=1)
        entries = {"params": params(1.0), "client/1": {"n": 1}, "client/2": {"n": 2}}
        checkpoints.save(10, entries)
        left = []

        def watched(call):
            def inner(*args, **kwargs):
                left.append(tmp_path / f"left{len(left)}")
                copytree(folder, left[-1])
                return call(*args, **kwargs)

            return inner

        copytree = shutil.copytree
        with monkeypatch.context() as patched:
            for owner, name in [(os, "fsync"), (Path, "replace"), (Path, "unlink")]:
                patched.setattr(owner, name, watched(getattr(owner, name)))
            checkpoints.save(11, {"params": params(2.0), "client/1": {"n": 11}}, unchanged=["client/2"])
        seen = []
        for copy in left:
            again = Checkpoints(copy, keep=1)
            saved = again.load()
            assert saved.notes == ()
            assert saved.entries["client/1"] == {"n": 1 if saved.version == 10 else 11}
            assert saved.entries["params"]["head.bias"][0] == (1.0 if saved.version == 10 else 2.0)
            seen.append(saved.version)
            again.save(12, {"params": params(3.0)}, unchanged=["client/1", "client/2"])  # and it goes on from there
            assert Checkpoints(copy).load().entries["client/2"] == {"n": 2}
            assert not [name for name in files(copy) if name.endswith(".tmp")]
        assert seen == sorted(seen)
        assert set(seen) == {10, 11}
        assert len(seen) >= 10

    @pytest.mark.slow
    def test_kill_9(self, folder):
        script = (
            "import sys, torch; from pathlib import Path; from partwise.experiment.checkpoint import Checkpoints\n"
            "c = Checkpoints(Path(sys.argv[1]))\n"
            "for v in range(10**6):\n"
            "    c.save(v, {'p': {'w': torch.full((60_000,), float(v))}, 'n': v}); print(v, flush=True)\n"
        )
        env = {**os.environ, "PYTHONPATH": str(Path(partwise.__file__).parents[1])}
        for acknowledged in (1, 4, 9):
            command = [sys.executable, "-c", script, folder]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as child:
                for _ in range(acknowledged):
                    last = int(child.stdout.readline())
                child.send_signal(signal.SIGKILL)
            saved = Checkpoints(folder).load()
            assert saved.notes == ()
            assert saved.version >= last
            assert saved.entries["n"] == saved.version
            assert saved.entries["p"]["w"].unique().tolist() == [float(saved.version)]


class TestDamage:
    @pytest.fixture
    def two(self, folder):
        checkpoints = Checkpoints(folder)
        checkpoints.save(10, {"params": params(1.0), "n": 10})
        first = set(files(folder))
        checkpoints.save(20, {"params": params(2.0), "n": 20})
        return {p.rsplit(".")[1]: folder / "objects" / p for p in files(folder) if p not in first}

    def test_a_truncated_object_makes_it_go_back(self, folder, two):
        path = two["safetensors"]
        length = path.stat().st_size
        os.truncate(path, length - 100)
        saved = Checkpoints(folder).load()
        assert (saved.version, saved.entries["n"]) == (10, 10)
        assert saved.notes == (
            f"checkpoint 20 is not whole: {path} has {length - 100} of {length} bytes. Going back to checkpoint 10.",
        )

    def test_a_changed_byte(self, folder, two):
        wreck(two["pack"])
        saved = Checkpoints(folder).load()
        assert saved.version == 10
        assert "does not have the digest it is named by. Going back to checkpoint 10." in saved.notes[0]
        with pytest.raises(CheckpointError, match=r"got none\. checkpoint 20 is not whole: .*digest it is named by"):
            Checkpoints(folder).load(20)

    def test_other_faults_of_an_object(self, folder, two):
        two["pack"].write_bytes(two["pack"].read_bytes() + b"x")
        assert "bytes instead of" in Checkpoints(folder).load().notes[0]
        two["pack"].unlink()
        assert "is missing" in Checkpoints(folder).load().notes[0]
        two["pack"].mkdir()
        assert "bytes instead of" in Checkpoints(folder).load().notes[0] or "of" in Checkpoints(folder).load().notes[0]

    @pytest.mark.parametrize("damage", [lambda p: os.truncate(p, 30), wreck, lambda p: p.write_bytes(b"\x01")])
    def test_a_damaged_manifest(self, folder, two, damage):
        path = max((folder / "manifests").iterdir())
        damage(path)
        saved = Checkpoints(folder).load()
        assert saved.version == 10
        assert saved.notes[0].startswith(f"checkpoint 20 is not whole: {path} is damaged (")

    def test_the_run_goes_on_and_the_damaged_one_goes(self, folder, two):
        wreck(two["safetensors"])
        checkpoints = Checkpoints(folder)
        assert checkpoints.load().version == 10
        checkpoints.save(20, {"params": params(2.0)}, unchanged=["n"])  # the same bits again
        saved = Checkpoints(folder).load()
        assert (saved.version, saved.notes, saved.entries["n"]) == (20, (), 10)
        assert checkpoints.versions() == [10, 20]

    def test_objects_of_a_damaged_manifest_stay_until_it_goes(self, folder, two):
        wreck(max((folder / "manifests").iterdir()))
        count = len(files(folder))
        Checkpoints(folder).save(30, {"n": 30})  # loaded nothing before: nothing is superseded
        assert len(files(folder)) == count + 1

    def test_none_is_whole(self, folder, two):
        for path in (folder / "objects").iterdir():
            wreck(path)
        with pytest.raises(CheckpointError) as caught:
            Checkpoints(folder).load()
        text = str(caught.value)
        assert text.startswith(
            f"Checkpoints('{folder}'): at least one checkpoint must be whole, got none. checkpoint 20"
        )
        assert "checkpoint 10 is not whole" in text
        assert text.endswith("Restore the files from a copy, or begin the run again.")

    def test_a_newer_format_is_not_passed_over(self, folder, two):
        path = max((folder / "manifests").iterdir())
        path.write_bytes(msgpack.packb({"partwise checkpoint": 2, "digest": b"", "body": b""}))
        with pytest.raises(CheckpointError, match=r"must have format version 1 or lower, got 2\. Update Partwise\."):
            Checkpoints(folder).load()

    def test_an_entry_whose_class_is_unknown(self, folder, monkeypatch):
        Checkpoints(folder).save(1, {"w": Worn(torch.ones(2), 3), "big": Worn(torch.ones(30_000), 3)})
        saved = Checkpoints(folder).load()
        monkeypatch.delitem(sys.modules["partwise.core.tree"]._BY_NAME, "Worn")
        for key in ("w", "big"):
            with pytest.raises(
                CheckpointError, match=rf"entry '{key}' in .*must decode, got: .*'Worn'.*Use the version"
            ):
                saved.entries[key]

    def test_an_entry_that_a_later_save_removed(self, folder):
        checkpoints = Checkpoints(folder, keep=1)
        checkpoints.save(1, {"n": 1})
        saved = checkpoints.load()
        checkpoints.save(2, {"n": 2})
        with pytest.raises(
            CheckpointError, match=r"entry 'n' in .*: must be readable, got No such file.*Load the check"
        ):
            saved.entries["n"]

    @pytest.mark.parametrize(
        "header",
        [
            b"{}",
            b"no json",
            b"[]",
            b'{"__metadata__":{"partwise":"*"}}',
            b'{"__metadata__":{"partwise":""},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
            b'{"__metadata__":{"partwise":""},"w":{"dtype":"F32","shape":2,"data_offsets":[0,4]}}',
        ],
    )
    def test_a_safetensors_file_of_somebody_else(self, folder, header):
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, {"params": params(1.0)})
        saved = checkpoints.load()
        (folder / "objects" / files(folder)[0]).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        with pytest.raises(CheckpointError, match=r"must be a safetensors file that Partwise wrote, got another"):
            saved.entries["params"]


class TestFolders:
    def test_missing(self, folder):
        with pytest.raises(
            CheckpointError, match=r"Checkpoints\('.*'\): the folder must exist, got none\. Give the run"
        ):
            Checkpoints(folder).load()
        assert Checkpoints(folder).versions() == []

    def test_foreign(self, folder):
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(
            CheckpointError, match=r"must hold a checkpoint, got a folder of something else\. Name a run"
        ):
            Checkpoints(folder).load()
        with pytest.raises(CheckpointError, match=r"must be new or hold checkpoints, got other files\. Name another"):
            Checkpoints(folder).save(1, {"a": 1})
        assert [p.name for p in folder.iterdir()] == ["notes.txt"]

    def test_none_yet(self, folder):
        (folder / "manifests").mkdir(parents=True)
        with pytest.raises(CheckpointError, match=r"got a run that saved none yet"):
            Checkpoints(folder).load()

    def test_another_version(self, folder):
        checkpoints = Checkpoints(folder)
        checkpoints.save(3, {"a": 1})
        checkpoints.save(8, {"a": 1})
        with pytest.raises(CheckpointError, match=r"there are checkpoints of versions 3, 8, got 5\. Load one\."):
            checkpoints.load(5)


class TestDisk:
    @pytest.mark.parametrize("version", [None, 7])
    def test_full(self, folder, version):
        checkpoints = Checkpoints(folder)
        if version is not None:
            checkpoints.save(version, {"params": params(1.0), "n": 1})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, hard))
        try:
            with pytest.raises(CheckpointError) as caught:
                checkpoints.save(8, {"n": 2, "params": params(2.0)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        there = "checkpoint 7 is as it was" if version else "there was no checkpoint yet"
        assert str(caught.value) == (
            f"Checkpoints('{folder}'): saving version 8 needs room on the disk, got: File too large. "
            f"Nothing was lost: {there}. Free some space and resume the run."
        )
        if version:
            assert Checkpoints(folder).load().entries["n"] == 1
        assert not list(folder.rglob("*.tmp"))

    @pytest.mark.parametrize(
        ("number", "sentence"),
        [
            (errno.ENOSPC, r"needs room on the disk, got: No space left on device\. Nothing was lost: checkpoint 7"),
            (errno.EROFS, r"needs a folder that it may write to, got: Read-only file system\. .*Make it writable and"),
            (errno.EACCES, r"needs a folder that it may write to, got: Permission denied"),
            (errno.EIO, r"needs a disk that works, got: Input/output error\. .*Look at the disk"),
        ],
    )
    @pytest.mark.parametrize("call", [(Path, "open"), (os, "fsync"), (Path, "replace")], ids=lambda c: c[1])
    def test_errors_of_the_system(self, folder, monkeypatch, number, sentence, call):
        checkpoints = Checkpoints(folder)
        checkpoints.save(7, {"params": params(1.0), "n": 1})

        def refuse(*args, **kwargs):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr(*call, refuse)
            with pytest.raises(CheckpointError, match=sentence):
                checkpoints.save(8, {"params": params(2.0), "n": 2})
        assert Checkpoints(folder).load().entries["n"] == 1
        checkpoints.save(8, {"n": 2}, unchanged=["params"])
        assert Checkpoints(folder).load().version == 8

    def test_a_folder_that_cannot_be_listed(self, folder, monkeypatch):
        checkpoints = Checkpoints(folder)
        checkpoints.save(7, {"n": 1})

        def refuse(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "iterdir", refuse)
        with pytest.raises(CheckpointError, match=r"the folder must be readable, got: Permission denied\."):
            Checkpoints(folder).load()

    def test_an_object_that_cannot_be_read(self, folder, monkeypatch):
        checkpoints = Checkpoints(folder)
        checkpoints.save(7, {"n": 1})

        def refuse(*args):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(Path, "open", refuse)
        monkeypatch.setattr(Path, "read_bytes", lambda path: path.read_text)
        with pytest.raises(CheckpointError, match="is damaged"):
            Checkpoints(folder).load()
        monkeypatch.undo()
        monkeypatch.setattr("partwise.experiment.objects._digest_of", refuse)
        with pytest.raises(CheckpointError, match=r"cannot be read \(Input/output error\)"):
            Checkpoints(folder).load()
