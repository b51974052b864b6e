"""Checkpoints of a run: whole or not there, and cheap where little changed.

A folder of checkpoints holds `objects/`, files named by the digest of their content, and `manifests/`, one small
file per checkpoint that says which entry is in which object. The manifest is written last, by one rename: a process
killed at any moment leaves the checkpoint before it whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from partwise import __version__
from partwise.core.codec import decode, encode_parts
from partwise.core.errors import CheckpointError, ProtocolError
from partwise.core.files import FULL, sync_folder, write_file
from partwise.experiment.objects import (
    Pack,
    Place,
    fault_of,
    read_slice,
    read_tree,
    write_tree,
)

__all__ = ["Checkpoints", "Saved"]

FORMAT_VERSION = 1
_OWN_FILE_FROM = 1 << 16  # bytes; smaller entries share a pack: 100,000 client states are not 100,000 files
_MAX_PACKS = 32  # more, and the smaller half is written anew as one
_NAME = re.compile(r"(\d{8})-v(\d+)\.msgpack")
_CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class _Manifest(NamedTuple):
    name: str
    version: int
    lengths: Mapping[str, int]  # of the objects, in bytes
    places: Mapping[str, Place]


@dataclass(frozen=True, eq=False)
class _Entries(Mapping[str, Any]):
    """Entries by name, each read from its file when it is asked for."""

    objects: Path
    places: Mapping[str, Place] = field(repr=False)

    def __getitem__(self, key: str) -> Any:
        place = self.places[key]
        path = self.objects / place.file
        try:
            return decode(read_slice(path, place.offset, place.length)) if place.length else read_tree(path)
        except ProtocolError as error:
            raise CheckpointError(
                f"entry {key!r} in {path}: must decode, got: {error} Use the version of Partwise that wrote it."
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"entry {key!r} in {path}: must be readable, got {error.strerror}. Load the checkpoint again: "
                "later saves remove what they replace."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class Saved(NamedTuple):
    """A checkpoint.

    Args:
        version: the server version it is of.
        entries: name -> tree; each is read when it is asked for, and again when it is asked for again.
        notes: a sentence for every later checkpoint that was passed over because it is not whole.
    """

    version: int
    entries: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass
class Checkpoints:
    """The checkpoints in a folder, of which the last few are kept. One process writes at a time.

    It remembers the checkpoint that it loaded or saved last: `unchanged` refers to that one, and those that
    followed it in the folder, if any, are superseded by the next save.

    Args:
        folder: made by the first save.
        keep: how many to keep, at least 1. With 2, a file that the disk damages costs one, unless both have it:
            what did not change between them, such as the states of clients that were not asked, is there once.

    Example:
        >>> import tempfile
        >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()) / "checkpoints")
        >>> path = checkpoints.save(1, {"server": {"round": 1}, "client/7": {"seen": 20}})
        >>> path = checkpoints.save(2, {"server": {"round": 2}}, unchanged=["client/7"])
        >>> saved = checkpoints.load()
        >>> saved.version, saved.entries["server"], saved.entries["client/7"]
        (2, {'round': 2}, {'seen': 20})
    """

    folder: Path
    keep: int = 2
    _before: _Manifest | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        if self.keep < 1:
            raise ValueError(f"{self._me()}: keep must be at least 1, got {self.keep}. Use keep=2.")

    def _me(self) -> str:
        return f"Checkpoints({str(self.folder)!r})"

    @property
    def _objects(self) -> Path:
        return self.folder / "objects"

    @property
    def _manifests(self) -> Path:
        return self.folder / "manifests"

    # Saving

    def save(self, version: int, entries: Mapping[str, object], unchanged: Collection[str] = ()) -> Path:
        """Save a checkpoint of these entries and of those in `unchanged`.

        Args:
            version: the server version it is of, at least 0.
            entries: name -> tree, as `codec.encode` takes it.
            unchanged: names whose content is that of the checkpoint before; nothing is encoded or written for them,
                and `entries` need not have them.

        Returns:
            The manifest's path.

        Raises:
            CheckpointError: the disk is full or not writable, or the folder is somebody else's. The checkpoint before
                is untouched.
            ValueError: the checkpoint before lacks an entry of `unchanged`.
        """
        places = {key: self._kept(key) for key in unchanged}
        pack = Pack(self._objects)
        try:
            self._prepare()
            lengths = self._write(entries, places, pack)
            sync_folder(self._objects)
            return self._seal(version, lengths, places)
        except OSError as error:
            raise self._unwritten(version, error) from error
        finally:
            pack.discard()

    def _kept(self, key: str) -> Place:
        if self._before is None or key not in self._before.places:
            before = "no checkpoint loaded or saved before" if self._before is None else "one without"
            raise ValueError(f"{self._me()}: unchanged entry {key!r} must be in the checkpoint before, got {before}.")
        return self._before.places[key]

    def _prepare(self) -> None:
        if not self._manifests.is_dir():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise CheckpointError(
                    f"{self._me()}: the folder must be new or hold checkpoints, got other files. Name another folder."
                )
            self._manifests.mkdir(parents=True)
        self._objects.mkdir(exist_ok=True)

    def _write(self, entries: Mapping[str, object], places: dict[str, Place], pack: Pack) -> dict[str, int]:
        """Write what is new, and add its places; the lengths of all objects in use."""
        lengths = dict(self._before.lengths) if self._before else {}
        for key, tree in entries.items():
            if key in places:
                continue
            parts = encode_parts(tree)
            if sum(len(part) for part in parts) < _OWN_FILE_FROM:
                pack.add(key, parts)
            else:
                name, length = write_tree(self._objects, tree)
                lengths[name], places[key] = length, Place(name)
        self._fold(lengths, places, pack)
        packs_name = pack.close()
        if packs_name is not None:
            lengths[packs_name] = pack.length
            places.update({key: Place(packs_name, *where) for key, where in pack.entries.items()})
        used = {place.file for place in places.values()}
        return {name: length for name, length in lengths.items() if name in used}

    def _fold(self, lengths: Mapping[str, int], places: dict[str, Place], pack: Pack) -> None:
        """Copy the entries of old sparse packs that are still in use into the new one."""
        names = _sparse(places.values(), lengths)
        for name in names:
            fault = fault_of(self._objects / name, lengths[name])
            if fault:
                raise CheckpointError(
                    f"{self._objects / name} {fault}. Restore it from a copy, or resume from an older checkpoint."
                )
        for key in [key for key, place in places.items() if place.file in names]:
            old = places.pop(key)
            pack.add(key, [read_slice(self._objects / old.file, old.offset, old.length)])

    def _seal(self, version: int, lengths: dict[str, int], places: dict[str, Place]) -> Path:
        """Write the manifest, which makes the checkpoint exist, and remove what is no longer needed."""
        names = self._names()
        name = f"{_sequence(names[-1]) + 1 if names else 1:08d}-v{version}.msgpack"
        write_file(self._manifests / name, [_packed(version, lengths, places)])
        sync_folder(self._manifests)
        superseded = {n for n in names if self._before is not None and n > self._before.name}
        self._before = _Manifest(name, version, lengths, places)
        with contextlib.suppress(OSError):  # the checkpoint is safe; what could not be removed is only in the way
            self._collect([n for n in [*names, name] if n not in superseded])
        return self._manifests / name

    def _collect(self, names: list[str]) -> None:
        """Remove other manifests, then the objects that none names. Killed in between, the next save goes on."""
        kept = names[-self.keep :]
        for path in self._manifests.iterdir():
            if path.name not in kept:
                path.unlink()
        needed: set[str] = set()
        for name in kept:
            is_last = self._before is not None and name == self._before.name
            try:
                needed.update(self._before.lengths if self._before and is_last else self._manifest(name).lengths)
            except CheckpointError:
                return  # its objects are not known; they go when it is old enough to go itself
        for path in self._objects.iterdir():
            if path.name not in needed:
                path.unlink()

    def _unwritten(self, version: int, error: OSError) -> CheckpointError:
        if error.errno in FULL:
            rule, remedy = "needs room on the disk", "Free some space and resume the run"
        elif error.errno in _CLOSED:
            rule, remedy = "needs a folder that it may write to", "Make it writable and resume the run"
        else:
            rule, remedy = "needs a disk that works", "Look at the disk and resume the run"
        there = self.versions()
        last = self._before.version if self._before is not None else there[-1] if there else None
        kept = "there was no checkpoint yet" if last is None else f"checkpoint {last} is as it was"
        return CheckpointError(
            f"{self._me()}: saving version {version} {rule}, got: {error.strerror or error}. "
            f"Nothing was lost: {kept}. {remedy}."
        )

    # Loading

    def versions(self) -> list[int]:
        """The versions there are checkpoints of, in the order in which they were saved."""
        return [_version(name) for name in self._names()]

    def load(self, version: int | None = None) -> Saved:
        """Load the checkpoint saved last that is whole, or that of one version.

        Every file is compared with its digest first.

        Raises:
            CheckpointError: there is none, none is whole, or it was written by a newer Partwise.
        """
        names = self._candidates(version)
        notes: list[str] = []
        for name in reversed(names):
            try:
                manifest = self._manifest(name)
                self._verify(manifest)
            except _NewerFormatError:
                raise
            except CheckpointError as error:
                notes.append(f"checkpoint {_version(name)} is not whole: {error}")
                continue
            self._before = manifest
            passed = tuple(f"{note} Going back to checkpoint {manifest.version}." for note in notes)
            return Saved(manifest.version, _Entries(self._objects, manifest.places), passed)
        raise CheckpointError(
            f"{self._me()}: at least one checkpoint must be whole, got none. {' '.join(notes)} "
            "Restore the files from a copy, or begin the run again."
        )

    def _candidates(self, version: int | None) -> list[str]:
        if not self.folder.is_dir():
            raise CheckpointError(
                f"{self._me()}: the folder must exist, got none. Give the run's present place, or begin it again."
            )
        names = self._names()
        if not names:
            what = "a run that saved none yet" if self._manifests.is_dir() else "a folder of something else"
            raise CheckpointError(
                f"{self._me()}: the folder must hold a checkpoint, got {what}. Name a run's folder, or begin it again."
            )
        chosen = [name for name in names if version in {None, _version(name)}]
        if not chosen:
            there = ", ".join(str(_version(name)) for name in names)
            raise CheckpointError(f"{self._me()}: there are checkpoints of versions {there}, got {version}. Load one.")
        return chosen

    def _names(self) -> list[str]:
        """The manifests' names in the order in which they were written."""
        try:
            return sorted(path.name for path in self._manifests.iterdir() if _NAME.fullmatch(path.name))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CheckpointError(f"{self._me()}: the folder must be readable, got: {error.strerror}.") from error

    def _verify(self, manifest: _Manifest) -> None:
        for name, length in manifest.lengths.items():
            fault = fault_of(self._objects / name, length)
            if fault:
                raise CheckpointError(f"{self._objects / name} {fault}.")

    def _manifest(self, name: str) -> _Manifest:
        path = self._manifests / name
        try:
            return _unpacked(name, path.read_bytes())
        except _NewerFormatError as error:
            raise _NewerFormatError(f"{path}: {error}") from None
        except (ValueError, KeyError, TypeError, IndexError, OSError, msgpack.UnpackException) as error:
            raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}).") from error


class _NewerFormatError(CheckpointError):
    """A manifest that only a newer Partwise can read."""


def _sequence(name: str) -> int:
    return int(name.split("-v", maxsplit=1)[0])


def _version(name: str) -> int:
    return int(name.removesuffix(".msgpack").split("-v")[1])


def _sparse(places: Iterable[Place], lengths: Mapping[str, int]) -> set[str]:
    """Packs to fold: those of which less than half is still in use, and the smaller half of too many."""
    used: dict[str, int] = {}
    for place in places:
        used[place.file] = used.get(place.file, 0) + place.length
    packs = sorted((name for name in used if name.endswith(".pack")), key=lambda name: (used[name], name))
    crowd = packs[: len(packs) // 2] if len(packs) >= _MAX_PACKS else []
    return {name for name in packs if name in crowd or 2 * used[name] < lengths[name]}


def _packed(version: int, lengths: Mapping[str, int], places: Mapping[str, Place]) -> bytes:
    order = {name: i for i, name in enumerate(lengths)}
    body: bytes = msgpack.packb(
        {
            "version": version,
            "partwise": __version__,
            "objects": list(lengths.items()),
            "entries": [(key, order[place.file], place.offset, place.length) for key, place in places.items()],
        }
    )
    digest = hashlib.blake2b(body, digest_size=20).digest()
    envelope: bytes = msgpack.packb({"partwise checkpoint": FORMAT_VERSION, "digest": digest, "body": body})
    return envelope


def _unpacked(name: str, data: bytes) -> _Manifest:
    envelope = msgpack.unpackb(data)
    form = envelope["partwise checkpoint"]
    if form > FORMAT_VERSION:
        raise _NewerFormatError(
            f"a checkpoint must have format version {FORMAT_VERSION} or lower, got {form}. Update Partwise."
        )
    if hashlib.blake2b(envelope["body"], digest_size=20).digest() != envelope["digest"]:
        raise ValueError("its digest does not match")
    body = msgpack.unpackb(envelope["body"])
    names = [name for name, _ in body["objects"]]
    places = {key: Place(names[at], offset, length) for key, at, offset, length in body["entries"]}
    return _Manifest(name, body["version"], dict(body["objects"]), places)
