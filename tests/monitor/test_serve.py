from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

import partwise
from partwise.monitor.serve import listen, serve
from toy_runs import full_run

SOURCE = {**os.environ, "PYTHONPATH": str(Path(partwise.__file__).parents[1])}


def test_a_port_in_use(tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        said = (
            r"needs an address of this machine and a port that is free there, got: Address already in use .* --port 0"
        )
        with pytest.raises(ValueError, match=rf"^page\(host='127\.0\.0\.1', port={port}\): {said} takes"):
            serve(full_run(tmp_path / "a", 0.02, 1000), port=port, say=print)


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("127.0.0.1", 70_000, r"^page\(port=70000\): must be from 0 to 65535, got 70000\. 0 takes any that is free\.$"),
        ("127.0.0.1", -1, r"^page\(port=-1\): must be from 0 to 65535, got -1\. "),
        ("300.1.1.1", 0, r"^page\(host='300\.1\.1\.1', port=0\): needs an address of this machine .*, got: Name or"),
        ("192.0.2.1", 0, r"^page\(host='192\.0\.2\.1', port=0\): needs an address of this machine .*, got: Cannot"),
    ],
)
def test_a_place_that_cannot_be_had(host, port, said):
    with pytest.raises(ValueError, match=said):
        listen(host, port)


def test_the_socket_is_let_go_where_there_is_no_run(tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(partwise.CheckpointError, match=r"there must be a run's record\.sqlite, got no folder"):
        serve(tmp_path / "none", port=port, say=print)
    listen("127.0.0.1", port).close()


def test_without_its_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(
        ImportError, match=r"^page: needs the packages fastapi and uvicorn, got none: .*'partwise\[page\]'"
    ):
        serve(tmp_path, say=print)


def test_from_the_command_line_until_ctrl_c(tmp_path):
    """It ends at once and well while somebody watches; what it says on the way is one line."""
    run = full_run(tmp_path / "a", 0.02, 1000)
    command = [sys.executable, "-m", "partwise", "page", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=SOURCE)
    try:
        line = process.stdout.readline()
        assert line.startswith(f"{run} is shown at http://127.0.0.1:")
        assert line.endswith("/  (Ctrl-C ends the page, not the run)\n")
        address = line.split(" is shown at ")[1].split()[0]
        with urllib.request.urlopen(f"{address}run", timeout=100) as answer:
            assert json.load(answer)["run"]["version"] == 12
            assert "server" not in {name.lower() for name in answer.headers}
        with urllib.request.urlopen(f"{address}events", timeout=100) as stream:
            assert json.loads(stream.readline()[6:])["run"]["name"] == "a"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=100)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.wait()


def test_too_many_viewers_are_told_to_come_back(tmp_path, monkeypatch):
    """In this process, so that a small number is enough."""
    import uvicorn

    monkeypatch.setattr("partwise.monitor.serve._VIEWERS", 2)
    servers, said = [], threading.Event()
    places = []

    class Kept(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    monkeypatch.setattr(uvicorn, "Server", Kept)

    def say(address):
        places.append(address)
        said.set()

    run = full_run(tmp_path / "a", 0.02, 1000)
    thread = threading.Thread(target=serve, args=(run,), kwargs={"port": 0, "say": say})
    thread.start()
    try:
        assert said.wait(20)
        streams = [urllib.request.urlopen(f"{places[0]}events", timeout=100)]
        with socket.create_connection(("127.0.0.1", int(places[0].rsplit(":", 1)[1].strip("/"))), timeout=100) as idle:
            idle.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b" 503 " in idle.recv(100)
        for stream in streams:
            stream.close()
    finally:
        servers[0].should_exit = True
        thread.join(20)
    assert not thread.is_alive()
