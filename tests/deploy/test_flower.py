"""Real processes: TLS, authenticated nodes, one that is not registered, and one that trusts another authority.

Left out unless asked for with `-m slow`, and skipped without Flower.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from partwise.experiment.spec import load
from partwise.experiment.store import RunStore

pytest.importorskip("flwr")
pytest.importorskip("cryptography")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Flower's own warnings

SOURCE = Path(__file__).resolve().parents[2] / "src"
PATIENCE = 200.0
SPEC = """
name = "clinic"
seed = 4

[workload]
name = "LeafSynthetic"
num_clients = 6
num_features = 5
classes = 3
max_examples = 60

[algorithm]
name = "FedAvg"

[algorithm.local]
steps = 3
batch_size = 8
optimizer = { name = "SGD", lr = 0.1 }

[scheduler]
name = "Synchronous"
cohort = 6
rounds = 2
"""


class Partwise:
    """A command in a process group of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / f"{'-'.join(arguments[:2])}-{Path(arguments[-1]).name}.log"
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "partwise", *arguments]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def until(is_so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.5)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Partwise]]:
    started: list[Partwise] = []

    def begin(*arguments: str) -> Partwise:
        started.append(Partwise(tmp_path, *arguments))
        return started[-1]

    yield begin
    for command in started:
        command.kill()


def test_run_over_tls_with_a_stranger_and_an_impostor_at_the_door(tmp_path, start):
    """Ends with the bits of the simulator; who is not registered, and who trusts another authority, is kept out."""
    from partwise.deploy import keys
    from partwise.deploy.launch import free_port
    from partwise.deploy.prepare import prepare

    (tmp_path / "spec.toml").write_text(SPEC)
    net = tmp_path / "net"
    server, one, two = prepare(tmp_path / "spec.toml", net, nodes=2, address=f"127.0.0.1:{free_port()}")
    stranger, wary = net / "stranger", net / "wary"
    for other in (stranger, wary):
        shutil.copytree(two, other)
        for key in ("node", "node.pub"):
            (other / "keys" / key).unlink()
        keys.make_node_key(other / "keys" / "node", other / "keys" / "node.pub")
    keys.make_authority(tmp_path / "other.key", tmp_path / "other.pem")
    shutil.copyfile(tmp_path / "other.pem", wary / "keys" / "authority.pem")

    running = start("deploy", "server", str(server))
    until(lambda: "listening on" in running.text(), "the server")
    doors = [start("deploy", "node", str(folder)) for folder in (stranger, wary)]
    until(lambda: "is started again and again" in doors[0].text(), "the stranger's refusal")
    until(lambda: "CERTIFICATE_VERIFY_FAILED" in (wary / "supernode.log").read_text(), "the wary node's refusal")
    link = (server / "superlink.log").read_text()
    assert "No SuperNode found with the given public key" in link
    for door in doors:
        door.kill()

    nodes = [start("deploy", "node", str(folder)) for folder in (one, two)]
    until(lambda: running.process.poll() is not None, "the end of the run")
    assert running.process.returncode == 0, running.text() + nodes[0].text()
    with RunStore(server / "run", "read") as store:
        assert store.meta()["status"] == "done"
        assert {e["body"]["node"] for e in store.events("node")} == {"node-1", "node-2"}
        assert [e["body"]["replies"] for e in store.events("commit")] == [6, 6]
        assert not store.events("lost")
    load(tmp_path / "spec.toml").run(tmp_path / "simulated")
    here, there = (load_file(folder / "model.safetensors") for folder in (tmp_path / "simulated", server / "run"))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    secrets = [path for path in (server / "run").rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert secrets == []


MASKED = """
client = [{ name = "Clip", max_norm = 0.5 }]

[channel]
name = "Masked"
limit = 0.5
max_weight = 1
min_contributors = 3
patience_seconds = 40.0
"""


def test_masked_sum_completes_with_a_node_killed_in_the_exchange(tmp_path, start):
    """Six clients on three nodes; in the second round one node is killed once all have trained."""
    from partwise.deploy.launch import free_port
    from partwise.deploy.prepare import prepare

    head, tail = SPEC.split("[workload]")
    client, channel = MASKED.split("[channel]")
    spec = f"{head}{client}[workload]{tail}\n[channel]{channel}".replace('"FedAvg"', '"FedAvg"\nweights = "uniform"')
    (tmp_path / "spec.toml").write_text(spec)
    address = f"127.0.0.1:{free_port()}"
    server, *folders = prepare(tmp_path / "spec.toml", tmp_path / "net", nodes=3, address=address)
    running = start("deploy", "server", str(server))
    until(lambda: "listening on" in running.text(), "the server")
    nodes = [start("deploy", "node", str(folder)) for folder in folders]

    def replies() -> int:
        if not (server / "run" / "record.sqlite").exists():
            return 0
        with RunStore(server / "run", "read") as store:
            return len(store.events("reply"))

    until(lambda: replies() >= 6, "the first round")
    until(lambda: "version 1 " in running.text(), "the first commit")
    until(lambda: replies() >= 12, "the second round's training")
    nodes[2].kill()
    until(lambda: running.process.poll() is not None, "the end of the run")
    assert running.process.returncode == 0, running.text()
    with RunStore(server / "run", "read") as store:
        commits = [event["body"] for event in store.events("commit")]
        assert [c["version"] for c in commits] == [1, 2]
        assert not store.events("skipped")
    model = load_file(server / "run" / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.values())


def test_part_that_flower_starts_needs_no_torch():
    code = "import sys, partwise.deploy.flower; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
