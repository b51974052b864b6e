"""A node's own process, opened from its folder; and whether all is right there before it joins."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from partwise.core.algorithm import Task
from partwise.core.codec import decode
from partwise.core.errors import PartwiseError, ProtocolError
from partwise.core.plan import Executor, Job, Resident
from partwise.core.population import Census, Population
from partwise.core.workload import Workload
from partwise.deploy.enrolled import Enrolled
from partwise.deploy.files import NodeFile
from partwise.deploy.memory import Memory
from partwise.deploy.node import Node
from partwise.experiment.spec import load
from partwise.populations.files import from_files
from partwise.programs.census import count
from partwise.programs.messages import Fetch
from partwise.programs.star import Star
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.simulate import Simulate

__all__ = ["Finding", "check", "open_node", "star_of"]


class Finding(NamedTuple):
    """One thing that was looked at. is_right: whether the node may join; said: what was found, and the remedy."""

    what: str
    is_right: bool
    said: str


def star_of(file: NodeFile) -> tuple[Star, Executor]:
    """The programs' definition over a node's own data, and what runs its local plans.

    Raises:
        SpecError: the specification has faults.
        DataError: the data cannot be used, or are not those that are enrolled.
    """
    described = load(file.spec)
    source = described.workload
    workload = source if isinstance(source, Workload) else source.build(described.seed)
    local: Population = from_files(file.data)
    members = file.members([len(local.data(client)) for client in local.clients])
    population = Enrolled(members, file.name, local, described=workload.population)
    star, _ = replace(described, workload=Workload(workload.model, population, workload.metrics)).build()
    runtime = described.runtime
    executor = runtime.executor if isinstance(runtime, Simulate) else Plain()
    return star, Plain() if isinstance(executor, Resident) else executor


def open_node(file: NodeFile) -> Node:
    """The node of a folder, with what it remembers. Raises as `star_of`, and CheckpointError for its memory."""
    star, executor = star_of(file)
    return Node(star, Memory(file.memory), executor, max_bytes=file.max_message_bytes)


def check(file: NodeFile) -> Iterator[Finding]:
    """Look at keys, data, memory and the way to the server; one local step is trained, and nothing is kept of it."""
    for what, look in (
        ("keys", _keys),
        ("specification and data", _data),
        ("one local step", _step),
        ("memory", _memory),
        ("disk", _disk),
        ("server", _server),
    ):
        yield _found(what, look, file)


def _found(what: str, look: Callable[[NodeFile], str], file: NodeFile) -> Finding:
    try:
        return Finding(what, True, look(file))
    except (PartwiseError, ValueError, OSError, RuntimeError, LookupError, TypeError) as error:
        return Finding(what, False, str(error) or type(error).__name__)


def _keys(file: NodeFile) -> str:
    from partwise.deploy.keys import check_pair, fingerprint_of

    public = file.key.with_suffix(".pub")
    check_pair(file.key, public)
    return f"a pair; the server must know {fingerprint_of(public)}"


def _data(file: NodeFile) -> str:
    star, _ = star_of(file)
    population = star.population
    assert isinstance(population, Enrolled)
    own = population.owners()[file.name]
    examples = [len(population.data(client)) for client in own]
    return f"clients {own.start} to {own.stop - 1} of {file.total}; the server's file says: examples = {examples}"


def _job(file: NodeFile) -> tuple[Star, Job]:
    star, _ = star_of(file)
    population = star.population
    assert isinstance(population, Enrolled)
    clients = population.owners()[file.name]
    site, algorithm, task = star.site(clients.start), star.algorithm, Task(0, 0, 0, 1)
    own = algorithm.client_init(site)
    index = algorithm.select(task, own, site)
    streams = algorithm.init(
        star.initial(), Census(len(population.clients), lambda: count(star, clients), star.model.buffers())
    )
    asked = Fetch(task.id, index, algorithm.fetch(index, task, own, site)).of(streams)
    came = {stream: dict(part.gather(streams[stream])) for stream, part in asked.items()}
    held = algorithm.receive(came, index, task, own, site)
    plan = algorithm.plan(held, index, task, own, site)
    start = {**algorithm.personalize(held["model"], own), **plan.extra}
    return star, Job(replace(plan, steps=1), start, algorithm.examples(index, own, site), 0)


def _step(file: NodeFile) -> str:
    star, job = _job(file)
    (result,) = Plain().run([job])
    if isinstance(result, Exception):
        raise result
    size = sum(t.nbytes for t in job.start.values())
    whole = sum(t.numel() * t.element_size() for t in star.like.values())
    return f"trains; its first client holds {size:,} of the model's {whole:,} bytes, loss {result.loss:.4f}"


def _memory(file: NodeFile) -> str:
    star, _ = star_of(file)
    whole = sum(t.numel() * t.element_size() for t in star.like.values())
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = 6 * whole + (256 << 20)  # values, gradients, momentum, change, a message and its bytes; and torch
    if free < needed:
        raise MemoryError(
            f"needs {needed >> 20} MiB, got {free >> 20} MiB free. Close something, or use a smaller model."
        )
    return f"{free >> 20} MiB free, {needed >> 20} MiB needed"


def _disk(file: NodeFile) -> str:
    memory = Memory(file.memory)
    try:
        clients = 0
        for clients, (_, body) in enumerate(memory.states(), 1):
            if clients == 1:
                star_of(file)  # which knows the classes that states are made of
            _read(file, body)
    finally:
        memory.close()
    found = os.statvfs(file.folder)
    return f"{found.f_bavail * found.f_frsize >> 20} MiB free; {clients} clients are remembered in {file.memory.name}"


def _read(file: NodeFile, body: bytes) -> None:
    """Refuse a client's state that cannot be gone on with, since another version of a part wrote it."""
    try:
        decode(body)
    except ProtocolError as error:
        raise ProtocolError(
            f"{file.memory}: must hold states that the parts here can read, got others: {error} "
            "Or take the file away: then what its clients knew is lost."
        ) from error


def _server(file: NodeFile) -> str:
    host, _, port = file.server.rpartition(":")
    context = ssl.create_default_context(cafile=str(file.authority))
    host = host.strip("[]")  # of an IPv6 address
    plain = socket.create_connection((host, int(port)), timeout=5.0)
    with plain, context.wrap_socket(plain, server_hostname=host) as line:
        return f"{file.server} answers, with a certificate of our authority ({line.version()})"
