"""One writer for a run's folder, whatever its name and whoever asks."""

import contextlib
import errno
import os
import subprocess
import sys
import threading

import pytest

from partwise.core.errors import CheckpointError
from partwise.experiment.lock import WriterLock, writer_of
from partwise.experiment.store import RunStore
from toy_killed import SOURCE


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


class TestLock:
    def test_two_in_one_process(self, folder):
        with RunStore(folder):
            assert writer_of(folder) == os.getpid()
            with pytest.raises(
                CheckpointError, match=r"one writer at a time, got a second one in this process\. Close"
            ):
                RunStore(folder)
            assert writer_of(folder) == os.getpid()
        assert writer_of(folder) is None
        RunStore(folder).close()

    @pytest.mark.parametrize("name", ["link", "run/../run"])
    def test_a_folder_of_two_names_has_one_lock(self, folder, name):
        (folder.parent / "link").symlink_to(folder)
        other = folder.parent / name
        with RunStore(folder):
            assert writer_of(other) == os.getpid()  # and asking by this name has not let anybody else in
            with pytest.raises(CheckpointError, match="one writer at a time, got a second one in this process"):
                RunStore(other)
            script = "import sys; from partwise.experiment.store import RunStore; RunStore(sys.argv[1])"
            tried = subprocess.run(
                [sys.executable, "-c", script, folder], capture_output=True, text=True, env=SOURCE, check=False
            )
            assert f"another process is writing this run: pid {os.getpid()}" in tried.stderr
        assert writer_of(other) is None

    def test_of_threads_that_begin_at_once_one_has_it(self, folder, monkeypatch):
        lockf, gate, got = sys.modules["fcntl"].lockf, threading.Barrier(2), []

        def slow(handle, flags):
            with contextlib.suppress(threading.BrokenBarrierError):
                gate.wait(1.0)  # both are in here, if both get as far
            lockf(handle, flags)

        def take():
            with contextlib.suppress(CheckpointError):
                got.append(WriterLock(folder))

        monkeypatch.setattr("fcntl.lockf", slow)
        threads = [threading.Thread(target=take) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].release()

    def test_the_lock_of_another_run_in_its_place_stays(self, folder):
        lock = WriterLock(folder)
        folder.rename(folder.with_name("moved"))
        folder.mkdir()
        (folder / "writer.lock").write_text("1")
        lock.release()
        assert (folder / "writer.lock").read_text() == "1"

    def test_a_file_left_behind_is_no_lock(self, folder):
        folder.mkdir()
        (folder / "writer.lock").write_text("1")
        assert writer_of(folder) is None
        RunStore(folder).close()
        assert not (folder / "writer.lock").exists()

    def test_a_lock_on_a_file_that_is_gone_is_taken_again(self, folder, monkeypatch):
        lockf, calls = sys.modules["fcntl"].lockf, []

        def removed(handle, flags):
            lockf(handle, flags)
            if not calls:
                (folder / "writer.lock").unlink()  # by the one who had it
            calls.append(handle)

        monkeypatch.setattr("fcntl.lockf", removed)
        with RunStore(folder):
            assert len(calls) == 2
            assert (folder / "writer.lock").read_text() == str(os.getpid())

    @pytest.mark.parametrize(
        ("call", "number", "sentence"),
        [
            (
                "os.open",
                errno.EROFS,
                r"needs a folder that it may write to and lock, got: Read-only file system\. Name",
            ),
            ("fcntl.lockf", errno.ENOLCK, r"needs a folder that it may write to and lock, got: No locks available"),
            ("os.ftruncate", errno.ENOSPC, r"got: No space left on device"),
        ],
    )
    def test_a_folder_that_cannot_be_locked(self, folder, monkeypatch, call, number, sentence):
        def refuse(*args):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr(call, refuse)
            with pytest.raises(CheckpointError, match=sentence):
                RunStore(folder)
        RunStore(folder).close()
