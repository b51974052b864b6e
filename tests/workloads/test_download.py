from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest

from partwise.core.errors import DataError
from partwise.workloads.download import Remote, digest_of

BODY = b"seven lopsided bytes" * 70_000  # more than one piece


def remote(*urls: str, body: bytes = BODY, kind: str = "sha256") -> Remote:
    return Remote("set/file.bin", urls, f"{kind}:{hashlib.new(kind, body).hexdigest()}")


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(BODY)
    return path


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host(source) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(source.parent))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_file_is_fetched_announced_and_kept(source, tmp_path, capsys, kind):
    url = source.as_uri()
    path = remote(url, kind=kind).fetch(tmp_path / "cache")
    assert path == tmp_path / "cache" / "set" / "file.bin"
    assert path.read_bytes() == BODY
    told = capsys.readouterr()
    assert told.err == f"partwise: downloading {url} to {path}\n"
    assert told.out == ""


def test_second_fetch_needs_no_host(source, tmp_path, capsys):
    wanted = remote(source.as_uri())
    wanted.fetch(tmp_path / "cache")
    source.unlink()
    capsys.readouterr()
    assert wanted.fetch(tmp_path / "cache").read_bytes() == BODY
    assert capsys.readouterr().err == ""


def test_default_place_is_the_user_cache(source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert remote(source.as_uri()).fetch() == tmp_path / "xdg" / "partwise" / "downloads" / "set" / "file.bin"


def test_over_http(host, tmp_path):
    assert remote(f"{host}/source.bin").fetch(tmp_path / "cache").read_bytes() == BODY


def test_next_host_is_tried(host, tmp_path):
    assert remote(f"{host}/none.bin", f"{host}/source.bin").fetch(tmp_path / "cache").read_bytes() == BODY


CUT = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nseven lop"
NO_HTTP = b"220 mail.example ESMTP\r\n\r\n"


@pytest.mark.parametrize("answer", [CUT, NO_HTTP])
def test_answer_that_is_broken_off_or_no_http(answer, host, tmp_path):
    class Broken(StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(answer)

    with ThreadingTCPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/source.bin"
            assert remote(url, f"{host}/source.bin").fetch(tmp_path / "cache").read_bytes() == BODY
            with pytest.raises(DataError, match=r"must be delivered by one of its hosts, got http://127.*yourself"):
                remote(url).fetch(tmp_path / "other")
            assert list((tmp_path / "other").rglob("*.bin*")) == []
        finally:
            server.shutdown()
            thread.join()


def test_wrong_digest_is_refused_and_nothing_kept(source, tmp_path):
    with pytest.raises(DataError, match=r"the digest must be sha256:\w+, got sha256:\w+\. Download it yourself"):
        remote(source.as_uri(), body=b"other").fetch(tmp_path / "cache")
    assert list((tmp_path / "cache" / "set").iterdir()) == []


def test_no_host_delivers(host, tmp_path):
    with pytest.raises(DataError, match=r"Remote\('set/file.bin'\): must be delivered .*404.*name its folder"):
        remote(f"{host}/none.bin").fetch(tmp_path / "cache")


def test_damaged_file_is_fetched_again(source, tmp_path, capsys):
    path = tmp_path / "cache" / "set" / "file.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY[:99])
    assert remote(source.as_uri()).fetch(tmp_path / "cache").read_bytes() == BODY
    assert "was damaged and is fetched again" in capsys.readouterr().err


def test_damaged_file_without_a_host_is_removed(tmp_path):
    path = tmp_path / "cache" / "set" / "file.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    with pytest.raises(DataError):
        remote((tmp_path / "none").as_uri()).fetch(tmp_path / "cache")
    assert not path.exists()


def test_digest(source):
    assert digest_of(source) == f"sha256:{hashlib.sha256(BODY).hexdigest()}"
