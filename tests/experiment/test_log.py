"""The log of a run: rows come back, torn ends are written over, and what is no log is said to be none."""

from __future__ import annotations

import errno
import os

import pytest

from partwise.core.errors import CheckpointError
from partwise.core.heard import START, Heard
from partwise.experiment.log import LOG, LogWriter, difference, read_log

ROWS = [Heard(0.0, -1, START), Heard(0.1, 7, 0), Heard(0.1, 2**31 - 1, 1), Heard(2.5, -1, -(2**40) - 3)]


def write(folder, rows=ROWS):
    writer = LogWriter(folder)
    for row in rows:
        writer.add(*row)
    writer.flush(durable=True)
    return writer


def test_rows_come_back(tmp_path):
    assert len(write(tmp_path)) == 4
    log = read_log(tmp_path)
    assert list(log) == ROWS
    assert (log[2], log[-1], len(log)) == (ROWS[2], ROWS[3], 4)
    assert repr(log) == f"Log('{tmp_path / LOG}', 4 messages)"
    assert (tmp_path / LOG).stat().st_size == 8 + 4 * 20
    assert list(read_log(tmp_path / LOG)) == ROWS


def test_what_is_not_flushed_is_not_there_yet(tmp_path):
    writer = write(tmp_path, ROWS[:1])
    writer.add(*ROWS[1])
    assert (len(writer), len(read_log(tmp_path))) == (2, 1)
    assert len(LogWriter(tmp_path)) == 1


def test_a_large_buffer_is_written(tmp_path):
    writer = LogWriter(tmp_path)
    for at in range(60_000):
        writer.add(float(at), at, 0)
    assert 52_000 < len(read_log(tmp_path)) < 60_000
    writer.flush()
    assert read_log(tmp_path)[59_999] == (59_999.0, 59_999, 0)


def test_truncation_and_a_torn_end(tmp_path):
    writer = write(tmp_path)
    writer.add(9.0, 9, 0)
    writer.truncate(2)
    writer.add(*ROWS[2])
    writer.flush()
    assert list(read_log(tmp_path)) == ROWS[:3]
    with (tmp_path / LOG).open("ab") as file:
        file.write(b"half of a row")
    assert list(read_log(tmp_path)) == ROWS[:3]
    again = LogWriter(tmp_path)
    again.add(*ROWS[3])
    again.flush()
    assert list(read_log(tmp_path)) == ROWS
    with pytest.raises(CheckpointError, match=r"must have the 5 messages of the checkpoint, got 4\. Restore the file"):
        again.truncate(5)


def test_nothing_at_all(tmp_path):
    writer = LogWriter(tmp_path)
    writer.flush(durable=True)
    writer.truncate(0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / LOG).write_bytes(b"PWLOG\x00\x00\x01")
    assert list(read_log(tmp_path)) == []


@pytest.mark.parametrize("written", [b"", b"PWL", b"PWLOG\x00\x00\x01"])
def test_killed_as_the_file_was_begun(written, tmp_path):
    (tmp_path / LOG).write_bytes(written)
    assert list(read_log(tmp_path)) == []
    writer = LogWriter(tmp_path)
    writer.truncate(0)
    assert list(read_log(tmp_path)) == []
    writer.add(*ROWS[0])
    writer.flush()
    assert list(read_log(tmp_path)) == ROWS[:1]


def test_what_is_no_log(tmp_path):
    with pytest.raises(CheckpointError, match=r"there must be a run's log\.bin, got none\. Name a run's folder"):
        read_log(tmp_path)
    (tmp_path / LOG).write_bytes(b"notes, and more of them")
    with pytest.raises(CheckpointError, match=r"must be a run's log, got a file that begins with b'notes, a'"):
        read_log(tmp_path)
    (tmp_path / LOG).write_bytes(b"PWLOG\x00\x00\x07")
    with pytest.raises(CheckpointError, match=r"must be a log of format version 1, got 7\. Use the version"):
        LogWriter(tmp_path)


def test_a_full_disk(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(CheckpointError, match=r"needs room on the disk, got: No space left on device\. What was"):
        write(tmp_path)


def test_the_first_difference(tmp_path):
    folders = [tmp_path / name for name in "abcd"]
    logs = [ROWS, ROWS, [ROWS[0], ROWS[1]._replace(now=0.125), *ROWS[2:]], ROWS[:3]]
    for folder, rows in zip(folders, logs, strict=True):
        folder.mkdir()
        write(folder, rows)
    first = read_log(folders[0])
    found = [difference(first, read_log(folder)) for folder in folders]
    assert found[:2] == [None, None]
    assert found[2] == (2, ROWS[1], (0.125, 7, 0))
    assert found[3] == (4, ROWS[3], None)
    assert str(found[2]) == "message 2: a message of client 7 at 0.1 s, and a message of client 7 at 0.125 s"
    assert str(found[3]) == "message 4: timer -1099511627779 at 2.5 s, and nothing more"
