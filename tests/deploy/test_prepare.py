"""The folder of a deployment, the two files in it, and what a site is told before it joins."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import make_dataclass, replace
from pathlib import Path

import pytest
import torch

from partwise.core.codec import encode, register
from partwise.core.errors import CompositionError, DataError, PartwiseError, SpecError
from partwise.deploy.files import NodeFile, ServerFile
from partwise.deploy.launch import start_link
from partwise.deploy.local import Finding, check, star_of
from partwise.deploy.memory import Memory
from partwise.deploy.prepare import prepare
from partwise.experiment.lock import WriterLock
from partwise.experiment.spec import load
from partwise.experiment.store import RunStore
from partwise.populations.files import from_files
from toy_cli import call

pytest.importorskip("cryptography")

SPEC = """
seed = 4
[workload]
name = "LeafSynthetic"
num_clients = 7
num_features = 5
classes = 3
max_examples = 60
[algorithm]
name = "FedAvg"
[scheduler]
cohort = 5
rounds = 2
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "spec.toml").write_text(SPEC)
    net = folder / "net"
    return net, prepare(folder / "spec.toml", net, nodes=3, address="127.0.0.1:9443", overrides=["scheduler.rounds=3"])


def test_without_cryptography_it_says_what_to_install(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n == "cryptography" or n.startswith("cryptography.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "partwise.deploy.keys", raising=False)
    monkeypatch.delattr("partwise.deploy.keys", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    (tmp_path / "spec.toml").write_text(SPEC)
    _, said = call("deploy", "init", tmp_path / "spec.toml", "--folder", tmp_path / "net", code=2)
    assert said.endswith("with the package cryptography, got none. Run: pip install 'partwise[flower]'.\n")
    assert not (tmp_path / "net").exists()


def test_what_is_written_is_utf_8_whatever_the_locale(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    code = (
        "import pathlib, sys; from partwise.deploy.prepare import prepare; "
        "prepare(*map(pathlib.Path, sys.argv[1:3]), nodes=2, address=sys.argv[3])"
    )
    flags = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning:partwise.deploy.prepare"]
    given = [str(tmp_path / "spec.toml"), str(tmp_path / "Müller"), "127.0.0.1:9443"]
    done = subprocess.run([sys.executable, *flags, "-c", code, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_files_that_a_specification_names_are_found_from_every_folder_of_the_network(tmp_path):
    (tmp_path / "paces.csv").write_text("client,seconds_per_step\n" + "".join(f"{c},0.5\n" for c in range(7)))
    profiles = '[workload.profiles]\nname = "ProfileTable"\npath = "paces.csv"\n'
    (tmp_path / "spec.toml").write_text(SPEC.replace("[algorithm]", profiles + "[algorithm]"))
    for folder in prepare(tmp_path / "spec.toml", tmp_path / "net", nodes=2, address="127.0.0.1:9443"):
        assert load(folder / "spec.toml").workload.profiles.path == (tmp_path / "paces.csv").resolve()


def test_trusted_examples_are_refused_before_anything_is_written(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC + "[trusted]\nexamples = 10\n")
    with pytest.raises(CompositionError, match=r"a network has no examples for Trusted\(examples=10\)"):
        prepare(tmp_path / "spec.toml", tmp_path / "net", nodes=3, address="127.0.0.1:9443")
    assert not (tmp_path / "net").exists()


def test_every_node_gets_its_own_clients_and_nobody_elses(made):
    net, (server, *nodes) = made
    whole = load(net.parent / "spec.toml").workload.build(4).population
    file = ServerFile.read(server)
    assert [m.clients for m in file.members] == [range(2), range(2, 4), range(4, 7)]
    for folder, member in zip(nodes, file.members, strict=True):
        data = from_files(folder / "data")
        assert [len(data.data(c)) for c in data.clients] == list(member.examples)
        for here, there in enumerate(member.clients):
            for name, column in whole.data(there).columns().items():
                assert torch.equal(data.data(here).columns()[name], column)
    test = from_files(file.test).data(0)
    assert len(test) == sum(len(whole.test_data(c) or ()) for c in whole.clients)
    assert load(file.spec).scheduler.rounds == 3


def test_keys_are_readable_by_their_owner_alone(made):
    net, _ = made
    secrets = [path for path in net.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert {path.relative_to(net).as_posix() for path in secrets} == {
        "authority/authority.key",
        "server/keys/server.key",
        *(f"node-{n}/keys/node" for n in (1, 2, 3)),
    }
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in secrets)


def test_certificate_is_the_servers_and_of_the_authority(made):
    _, (server, *_) = made
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "keys" / "server.pem", server / "keys" / "server.key")
    left, right = socket.socketpair()
    client = ssl.create_default_context(cafile=str(server / "keys" / "authority.pem"))
    held: list[ssl.SSLSocket] = []
    done = threading.Thread(target=lambda: held.append(context.wrap_socket(left, server_side=True)))
    done.start()
    with client.wrap_socket(right, server_hostname="127.0.0.1") as line:
        assert line.version() == "TLSv1.3"
        done.join()
    held[0].close()


def test_node_trains_as_the_client_it_stands_for(made):
    _, (_, one, *_) = made
    star, _ = star_of(NodeFile.read(one))
    assert list(star.population.clients) == list(range(7))
    assert star.population.owners()["node-1"] == range(2)


def test_nodes_know_how_wide_a_model_their_clients_have(tmp_path):
    widths_too = SPEC.replace("[algorithm]", "[workload.profiles]\nname = 'Widths'\n[algorithm]")
    (tmp_path / "spec.toml").write_text(widths_too)
    population = load(tmp_path / "spec.toml").workload.build(4).population
    _, *nodes = prepare(tmp_path / "spec.toml", tmp_path / "net", nodes=3, address="127.0.0.1:9443")
    widths = {}
    for folder in nodes:
        star, _ = star_of(NodeFile.read(folder))
        widths |= {client: star.site(client).profile.width for client in star.population.owners()[folder.name]}
    assert widths == {client: population.profile(client).width for client in range(7)}
    assert len(set(widths.values())) == 5


def test_check_says_what_is_right_and_what_is_not(made):
    _, (_, one, two, three) = made
    found = {finding.what: finding for finding in check(NodeFile.read(one))}
    assert [name for name, finding in found.items() if not finding.is_right] == ["server"]  # there is none
    examples = list(ServerFile.read(made[1][0]).members[0].examples)
    assert f"clients 0 to 1 of 7; the server's file says: examples = {examples}" in found["specification and data"].said
    assert "trains" in found["one local step"].said
    (two / "keys" / "node").chmod(0o644)
    found = {finding.what: finding for finding in check(NodeFile.read(two))}
    assert found["keys"].said.endswith(f"got mode 644. Run: chmod 600 {two / 'keys' / 'node'}")
    (two / "keys" / "node").chmod(0o600)
    (three / "data" / "offsets.npy").unlink()
    found = {finding.what: finding for finding in check(NodeFile.read(three))}
    assert "needs offsets" in found["specification and data"].said
    assert not found["one local step"].is_right


def test_check_reads_what_is_remembered(made):
    """A state's class has another field since: another version of a part of one's own."""
    _, (_, one, *_) = made
    file = NodeFile.read(one)
    old = register(make_dataclass("Keepsake", ["seen"]))
    with closing(Memory(file.memory)) as memory:
        memory.save({0: encode({"own": old(3)})}, [])
    assert "1 clients are remembered" in found_of(file)["disk"].said
    register(make_dataclass("Keepsake", ["seen", "more"]))
    found = found_of(file)["disk"]
    assert not found.is_right
    assert f"{file.memory}: must hold states that the parts here can read" in found.said
    assert "Keepsake must have the same fields on both sides, here seen, more" in found.said
    file.memory.unlink()


def found_of(file: NodeFile) -> dict[str, Finding]:
    return {finding.what: finding for finding in check(file)}


@pytest.mark.parametrize(("first", "total", "said"), [(0, 1, "0 to 1"), (9, 7, "9 to 10"), (6, 7, "6 to 7")])
def test_clients_beyond_the_federation_are_told(made, first, total, said):
    _, (_, one, *_) = made
    file = replace(NodeFile.read(one), first=first, total=total)
    found = found_of(file)["specification and data"]
    assert not found.is_right
    assert (
        f"clients {said}, of which the data are here, must be among the total={total} of the federation" in found.said
    )
    file.memory.unlink(missing_ok=True)


@pytest.mark.parametrize(("name", "which"), [("before", 2), ("after", 1)])
def test_node_may_have_any_name(made, name, which):
    """It has its own clients, and not those of the others that are numbered before or after them."""
    _, nodes = made
    file = NodeFile.read(nodes[which])
    expected = found_of(file)["specification and data"]
    file.memory.unlink()
    assert found_of(replace(file, name=name))["specification and data"] == expected
    file.memory.unlink()


@pytest.mark.parametrize(
    "algorithm",
    [
        'name = "Scaffold"\nsubmodel = true',
        'name = "MCPSGD"',
        'name = "AdaAlter"',
        'name = "FedLaAvg"',
        'name = "FedRank"',
        'name = "Ferret"',
        'name = "FedSubAvg"\nestimator = "capped"',
    ],
)
def test_step_is_trained_with_every_stream_that_a_client_is_sent(algorithm, tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC.replace('[algorithm]\nname = "FedAvg"', f"[algorithm]\n{algorithm}"))
    _, one, _ = prepare(tmp_path / "spec.toml", tmp_path / "net", nodes=2, address="127.0.0.1:1")
    found = found_of(NodeFile.read(one))["one local step"]
    assert found.is_right, found.said
    assert found.said.startswith("trains; its first client holds ")


def test_commands(made, tmp_path):
    _, (server, one, *_) = made
    out, err = call("node", "check", one, code=1)
    assert "ok     keys: a pair; the server must know" in out
    assert "node-1: not ready to join: server." in err
    out, _ = call("deploy", "status", server)
    assert out.splitlines()[0] == "not begun, version 0; 0 tasks lost, 0 messages refused"
    out, _ = call("deploy", "init", one / "spec.toml", "--folder", tmp_path / "net", "--nodes", "2")
    assert f"partwise deploy server {tmp_path / 'net' / 'server'}" in out
    _, err = call("deploy", "init", one / "spec.toml", "--folder", tmp_path / "net", code=2)
    assert "needs a new or empty folder" in err


def test_second_process_of_a_node_is_refused(made, monkeypatch):
    """It would take the socket of the first, and leave it without one."""

    def start_node(file: NodeFile) -> None:
        raise DataError("joined")

    monkeypatch.setattr("partwise.deploy.launch.start_node", start_node)
    _, (_, one, *_) = made
    lock = WriterLock(one)
    try:
        _, err = call("deploy", "node", one, code=1)
    finally:
        lock.release()
    assert f"{one}: one process serves a node, got a second beside pid {os.getpid()}. End that one." in err
    assert not (one / "node.sock").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "node north failed: nothing was said of why"),
        (" \n ", "node north failed: nothing was said of why"),
        ("Traceback\nKeyError: 'door'\n", "node north failed: KeyError: 'door'"),
        ("\x1b[2J\x1b]0;title\x07done", "node north failed: �[2J�]0;title�done"),
    ],
)
def test_status_says_whatever_a_node_failed_with(tmp_path, text, said):
    """A node's words are its own: there may be none, and some that a terminal would obey."""
    (tmp_path / "server.toml").write_text('address = "127.0.0.1:1"\n[[nodes]]\nname = "north"\nexamples = [3]\n')
    with RunStore(tmp_path / "run", "append") as store:
        store.append_events([(1.0, "node_error", {"node": "north", "clients": [0], "text": text})])
        store.append_events([(2.0, "rejected", {"node": "north", "reason": f"node north sent\n{text}"})])
    out, _ = call("deploy", "status", tmp_path)
    assert f"  {said}\n" in out
    assert len(out.splitlines()) == 4  # how it stands, the node, and two troubles
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("address = 1", "address must be text, got 1."),
        ('address = "a:1"', "there must be at least one [[nodes]], got none."),
        ('address = "a:1"\nadress = "b"', "knows no 'adress'. Leave it out."),
        ('address = "a:1"\n[[nodes]]\nname = "a b"\nexamples = [1]', "a name of its own of letters, digits, - and _"),
        ('address = "a:1"\n[[nodes]]\nname = "a"\nexamples = [0]', "one whole number from 1 on per client, got [0]"),
        ("address = ", "must be TOML, got"),
    ],
)
def test_servers_file_says_all_that_is_wrong(tmp_path, text, fault):
    (tmp_path / "server.toml").write_text(text)
    with pytest.raises(SpecError) as caught:
        ServerFile.read(tmp_path)
    assert fault in str(caught.value)


def test_nodes_file_says_all_that_is_wrong(tmp_path):
    (tmp_path / "node.toml").write_text('name = 3\nfirst = -1\nsocket = "' + "s" * 120 + '"')
    with pytest.raises(SpecError) as caught:
        NodeFile.read(tmp_path)
    said = str(caught.value)
    for fault in (
        "name must be text, got 3",
        "server must be text, got None",
        "first must be a number from 0 on, got -1",
    ):
        assert fault in said
    assert "socket: a path must have at most 100 characters" in said


@pytest.mark.parametrize("address", ["federation.example.org", ":9443", "a:", "a:b", "a:0", "a:65536", "::1:9443"])
def test_address_that_is_none_is_told_with_its_setting(tmp_path, address):
    (tmp_path / "node.toml").write_text(f'name = "a"\nserver = "{address}"\nfirst = 0\ntotal = 1')
    (tmp_path / "server.toml").write_text(f'address = "{address}"\n[[nodes]]\nname = "a"\nexamples = [1]')
    for kind, key in ((NodeFile, "server"), (ServerFile, "address")):
        with pytest.raises(SpecError, match=f"{key} must be host:port, with brackets around an IPv6 address, got "):
            kind.read(tmp_path)


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_address_may_be_one_of_ipv6(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    with socket.socket(socket.AF_INET6) as door:
        try:
            door.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no ::1")
        door.listen()
        port = door.getsockname()[1]
        folders = prepare(tmp_path / "spec.toml", tmp_path / "net", nodes=1, address=f"[::1]:{port}")
        server, file = ServerFile.read(folders[0]), NodeFile.read(folders[1])
        assert (server.host, server.port, file.server) == ("::1", port, f"[::1]:{port}")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folders[0] / "keys" / "server.pem", folders[0] / "keys" / "server.key")

        def answer() -> None:
            with door.accept()[0] as plain, context.wrap_socket(plain, server_side=True):
                pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        found = found_of(file)["server"]
        thread.join(10.0)
    assert found.is_right, found.said


def test_more_nodes_than_clients_and_an_address_that_is_none(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    with pytest.raises(DataError, match=r"^prepare\(nodes=8\): every node must have a client, got 7 of them\."):
        prepare(tmp_path / "spec.toml", tmp_path / "net", nodes=8, address="127.0.0.1:1")
    with pytest.raises(ValueError, match=r"must be host:port, got 'here'\. Use 127\.0\.0\.1:9443\."):
        prepare(tmp_path / "spec.toml", tmp_path / "net", nodes=2, address="here")
    assert os.listdir(tmp_path) == ["spec.toml"]  # noqa: PTH208 - nothing was made


@pytest.mark.parametrize(("kind", "name"), [(ServerFile, "server.toml"), (NodeFile, "node.toml")])
def test_folder_without_its_file_says_so(kind, name, tmp_path):
    with pytest.raises(DataError, match=rf"{name}: must be there to be read, got: No such file .* `partwise deploy"):
        kind.read(tmp_path)


OWN = """
from dataclasses import dataclass
from partwise.core.update import scale

@dataclass(frozen=True)
class Halved:
    def init(self, params):
        return ()
    def apply(self, update, state, rng):
        return scale(update, 0.5), state
"""


@pytest.mark.parametrize("overrides", [[], ["scheduler.rounds=3"]], ids=["as written", "dumped"])
def test_files_with_parts_of_ones_own_go_to_each_side(overrides, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mine.py").write_text(OWN)
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC + '[[client]]\n# name = "gone.py:Other"\nname = "parts/mine.py:Halved"\n')
    sides = prepare(spec, tmp_path / "net", nodes=2, address="127.0.0.1:9443", overrides=overrides)
    (tmp_path / "parts" / "mine.py").unlink()
    for side in sides:
        assert (side / "mine.py").read_text() == OWN
        assert 'name = "mine.py:Halved"' in (side / "spec.toml").read_text()
        assert type(load(side / "spec.toml").client[0]).__name__ == "Halved"


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(OWN)
    spec, named = tmp_path / "spec.toml", '[[client]]\nname = "{}/mine.py:Halved"\n'
    spec.write_text(SPEC + named.format("one") + named.format("other"))
    with pytest.raises(DataError, match=r"must have names of their own, got .*one/mine\.py and .*other/mine\.py"):
        prepare(spec, tmp_path / "net", nodes=2, address="127.0.0.1:9443")
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("name", ["flwr/config.toml", "app/pyproject.toml", "keys/server.key"])
def test_a_server_folder_that_lacks_what_flower_needs_begins_nothing(made, name, monkeypatch):
    _, (folder, *_) = made
    monkeypatch.setattr("partwise.deploy.launch._start", lambda *_: pytest.fail("it must not begin"))
    kept = (folder / name).read_bytes()
    (folder / name).unlink()
    try:
        with pytest.raises(PartwiseError, match=rf"got none of the name {name}\. `partwise deploy init` makes them"):
            start_link(ServerFile.read(folder))
    finally:
        (folder / name).write_bytes(kept)


@pytest.mark.parametrize("port", ["0", "65536", "99999", "²"])
def test_an_address_whose_port_cannot_be_is_told_before_a_folder_is_made(tmp_path, port):
    (tmp_path / "spec.toml").write_text(SPEC)
    with pytest.raises(ValueError, match=r"^prepare\(address='here:.+'\): must be host:port, got "):
        prepare(tmp_path / "spec.toml", tmp_path / "net", nodes=3, address=f"here:{port}")
    assert not (tmp_path / "net").exists()


def test_no_nodes_are_too_few(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    with pytest.raises(DataError, match=r"^prepare\(nodes=0\): .* Ask for one at least\.$"):
        prepare(tmp_path / "spec.toml", tmp_path / "net", nodes=0, address="here:9443")
