"""Our two parts of Flower: what it starts at a node for every message, and at the server for a run.

The node's part hands bytes over a socket to the node's own process, and back. It imports no torch, so that it is there
at once, and opens nothing: what is in the bytes, the node's process looks at.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from partwise.deploy.line import ask
from partwise.deploy.post import PARENT, Collected

__all__ = ["KEY", "FlowerPost", "client_app", "packed", "server_app", "trained_by", "unpacked"]

KEY = "partwise"
_TYPE = "partwise.bytes"  # so that nobody takes it for an array in NumPy's format

client_app, server_app = ClientApp(), ServerApp()


def packed(data: bytes) -> RecordDict:
    """Bytes as Flower carries them: in an array, which travels in chunks."""
    return RecordDict({KEY: ArrayRecord({KEY: Array("uint8", (len(data),), _TYPE, data)})})


def unpacked(content: Any) -> bytes:
    """Undo `packed`.

    Raises:
        ValueError: it is something else.
    """
    record = content.get(KEY) if isinstance(content, RecordDict) else None
    array = record.get(KEY) if isinstance(record, ArrayRecord) else None
    if not isinstance(array, Array) or array.stype != _TYPE or not isinstance(array.data, bytes):
        raise ValueError(f"unpacked(): a message must hold one array {KEY!r} of bytes, got another. Use Partwise.")
    return array.data


def train(message: Message, context: Context) -> Message:
    """Messages for the clients of this node, and their answers."""
    return _carried(b"work", message, context)


def query(message: Message, context: Context) -> Message:
    """Who holds what, counted over the clients of this node."""
    return _carried(b"census", message, context)


def _carried(verb: bytes, message: Message, context: Context) -> Message:
    status, _, data = ask(str(context.node_config["socket"]), verb + b"\n" + unpacked(message.content)).partition(b"\n")
    if status != b"ok":
        raise RuntimeError(data.decode(errors="replace"))
    return Message(packed(data), reply_to=message)


client_app.train()(train)
client_app.query()(query)


def trained_by(
    app: ClientApp, before: Mapping[str, Any], config: Mapping[str, Any], node: Mapping[str, Any]
) -> tuple[Mapping[str, Any], float]:
    """What a `ClientApp` makes of a state dict, and of how many examples; in this process, without a network.

    Raises:
        ValueError: it returns no arrays or no number of examples.
    """
    content = RecordDict({"arrays": ArrayRecord(dict(before)), "config": ConfigRecord(dict(config))})
    about = Metadata(
        run_id=1,
        message_id="1",
        src_node_id=0,
        dst_node_id=1,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=3600.0,
        message_type="train",
    )
    message = Message(metadata=about, content=content)  # type: ignore[call-overload,unused-ignore]  # needs no task
    context = Context(
        run_id=1, node_id=1, node_config=dict(node), state=RecordDict(), run_config=dict(config), series_id=1
    )
    found = app(message, context).content
    arrays, metrics = list(found.array_records.values()), list(found.metric_records.values())
    if len(arrays) != 1 or not any("num-examples" in record for record in metrics):
        raise ValueError(
            f"trained_by(): a ClientApp must return one ArrayRecord and 'num-examples' among its metrics, got "
            f"{sorted(found)}. Return RecordDict({{'arrays': ..., 'metrics': ...}})."
        )
    (examples,) = [record["num-examples"] for record in metrics if "num-examples" in record][:1]
    return arrays[0].to_torch_state_dict(), float(examples)


class FlowerPost:
    """Carries batches over Flower's grid, to nodes that are known by their keys.

    Args:
        grid: of the run.
        keys: public key, as `keys.public_der` gives it -> the node's name.
    """

    def __init__(self, grid: Grid, keys: Mapping[bytes, str]) -> None:
        self._grid, self._keys = grid, keys
        self._ids: dict[str, int] = {}

    def there(self) -> Mapping[str, str]:
        from partwise.deploy.keys import der_of_pem

        found = [(self._keys.get(der_of_pem(_text(node.public_key)), ""), node) for node in self._grid.get_nodes()]
        self._ids = {name: node.node_id for name, node in found if name}
        return {name: str(node.last_activated_at) for name, node in found if name}

    def send(self, node: str, data: bytes, *, kind: str, seconds: float, group: str) -> str:
        message = Message(packed(data), self._ids[node], kind, ttl=seconds, group_id=group)
        (id,) = list(self._grid.push_messages([message])) or [""]
        return id or ""

    def collect(self, ids: Collection[str]) -> Sequence[Collected]:
        return [self._collected(message) for message in self._grid.pull_messages(list(ids))]

    def _collected(self, message: Message) -> Collected:
        id = message.metadata.reply_to_message_id
        if message.has_error():
            return Collected(id, b"", _reason(message.error.code, message.error.reason or ""))
        try:
            return Collected(id, unpacked(message.content))
        except ValueError as error:
            return Collected(id, str(error).encode())  # no batch: it is refused as what it is


def _text(key: bytes | str) -> str:
    return key if isinstance(key, str) else key.decode()


def _reason(code: int, reason: str) -> str:
    """What a node says of a failure: the traceback alone, where there is one."""
    text = reason.partition(":<'")[2].removesuffix("'>") or reason
    return text.strip() or f"failed with Flower's code {code}"


def _end_with(parent: int) -> None:
    """End when the command that started Flower has ended, however it did: a second one must be able to go on."""

    def watch() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except OSError:
                os._exit(1)
            time.sleep(0.5)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


def main(grid: Grid, context: Context) -> None:
    """Begin the run of a deployment, or go on with it."""
    from partwise.deploy.files import ServerFile
    from partwise.deploy.keys import public_der
    from partwise.deploy.server import experiment_of
    from partwise.experiment.store import RECORD

    _end_with(int(os.environ.get(PARENT, "0")))
    file = ServerFile.read(Path(str(context.run_config["server"])))
    keys = {public_der(node.key): node.name for node in file.nodes}
    experiment = experiment_of(file, FlowerPost(grid, keys))
    experiment.run(file.run, resume=(file.run / RECORD).exists())


server_app.main()(main)
