"""Populations in files: larger than memory, opened at once, read where they are touched.

Shapes: N clients, n examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partwise.core.errors import DataError
from partwise.core.population import Examples, Population
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.availability import Always, Availability
from partwise.populations.columns import as_columns
from partwise.populations.mapped import NPY_TYPES, mapped_npy, mapped_safetensors, npy_header
from partwise.populations.profiles import Constant, Profiles
from partwise.populations.reliability import Reliability, Steady

__all__ = ["ClientColumns", "from_files", "write_folder"]

_OFFSETS, _NAMES = "offsets", "names"
_TEST, _CENTRAL = "test", "central"


def from_files(
    path: str | Path,
    *,
    profiles: Profiles | None = None,
    availability: Availability | None = None,
    reliability: Reliability | None = None,
) -> ArrayPopulation:
    """Clients whose examples stay in files, mapped into memory; what is never touched is never read.

    The folder has one `.npy` file per column, the examples of client 0, then 1, and so on, and `offsets.npy` (N + 1,)
    int64: client c has the examples offsets[c] .. offsets[c + 1]. There may be a folder `test` with the same files,
    which the clients are tested on; a folder `central` with columns alone, a test set held by nobody; and `names.npy`
    (N,), text. A `.safetensors` file has all this in one, with names such as `x`, `offsets` and `test/x`.

    Columns keep their type, and values are not looked at: NaN is found in training, an id outside a table by the
    client that has it. The files must not change while the population is used.

    Args:
        path: a folder, such as `write_folder` makes, or a `.safetensors` file.
        profiles: how fast the clients are. Default: `Constant()`.
        availability: when they could answer. Default: `Always()`.
        reliability: what becomes of their tasks. Default: `Steady()`.

    Raises:
        DataError: what cannot be used, with the file and the remedy.
    """
    where, path = f"from_files({str(path)!r})", Path(path)
    columns, names = _found(where, path)
    offsets = columns.pop(_OFFSETS, None)
    central = _within(columns, _CENTRAL)
    test, train = _within(columns, _TEST), {name: c for name, c in columns.items() if "/" not in name}
    test_offsets = test.pop(_OFFSETS, None)
    if offsets is None or (test and test_offsets is None):
        lacking = _OFFSETS if offsets is None else f"{_TEST}/{_OFFSETS}"
        raise DataError(
            f"{where}: needs {lacking}, got {', '.join(sorted(columns)) or 'nothing'}. "
            "Save np.concatenate([[0], np.cumsum(sizes)]) under that name, or write it with write_folder."
        )
    if test_offsets is not None:
        _check(where, f"{_TEST}/", test, test_offsets)
    return ArrayPopulation(
        train,
        _check(where, "", train, offsets),
        test,
        test_offsets,
        central=Examples(central) if central else None,
        names=names,
        profiles=profiles or Constant(),
        availability=availability or Always(),
        reliability=reliability or Steady(),
    )


def _found(where: str, path: Path) -> tuple[dict[str, Tensor], Sequence[str]]:
    """What is there, by name, and the clients' names."""
    if path.is_file() and path.suffix == ".safetensors":
        return mapped_safetensors(where, path), ()
    if not path.is_dir():
        got = f"a {path.suffix or 'nameless'} file" if path.exists() else "a path where there is nothing"
        remedy = "Unpack it into a folder of .npy files" if path.suffix == ".npz" else "Check the path"
        raise DataError(f"{where}: must be a folder of .npy files or a .safetensors file, got {got}. {remedy}.")
    files = [*path.glob("*.npy"), *path.glob(f"{_TEST}/*.npy"), *path.glob(f"{_CENTRAL}/*.npy")]
    by_name = {file.relative_to(path).with_suffix("").as_posix(): file for file in sorted(files)}
    names = by_name.pop(_NAMES, None)
    columns = {name: mapped_npy(where, file) for name, file in by_name.items()}
    return columns, () if names is None else _Names(_text(where, names))


def _within(columns: dict[str, Tensor], folder: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{folder}/"): c for n, c in columns.items() if n.startswith(f"{folder}/")}


def _check(where: str, folder: str, columns: Mapping[str, Tensor], offsets: Tensor) -> Tensor:
    """Refuse offsets and columns that do not belong together; the message names the file."""
    if not columns:
        raise DataError(f"{where}: needs a column besides {folder}{_OFFSETS}, got none. Save one file per column.")
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or len(offsets) < 2:
        raise DataError(
            f"{where}: {folder}{_OFFSETS} must be int64 with one entry per client and one more, got "
            f"{tuple(offsets.shape)} {offsets.dtype}. Save np.concatenate([[0], np.cumsum(sizes)]).astype('int64')."
        )
    falls = (offsets.diff() < 0).nonzero().flatten()
    if int(offsets[0]) != 0 or len(falls):
        got = f"{int(offsets[0])} first" if not len(falls) else f"a fall after client {int(falls[0])}"
        raise DataError(
            f"{where}: {folder}{_OFFSETS} must ascend from 0, got {got}. Put each client's examples together."
        )
    for name, column in columns.items():
        if len(column) != int(offsets[-1]):
            raise DataError(
                f"{where}: {folder}{name} must have as many examples as {folder}{_OFFSETS} ends with, "
                f"{int(offsets[-1])}, got {len(column)}. Write both from the same clients."
            )
    return offsets


class _Names(Sequence[str]):
    """Names in an array, which takes less than a list of them."""

    def __init__(self, array: NDArray[np.str_]) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        return _Names(self._array[at]) if isinstance(at, slice) else str(self._array[at])


def _text(where: str, path: Path) -> NDArray[np.str_]:
    try:
        found: NDArray[np.str_] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise DataError(
            f"{where}: {path.name} must be text that np.save wrote, got: {error}. Write it again."
        ) from error
    if found.dtype.kind != "U" or found.ndim != 1:
        raise DataError(
            f"{where}: {path.name} must be one text per client, got {found.shape} {found.dtype}. "
            "Save np.array(names, dtype=str)."
        )
    _each_once(f"{where}: {path.name}", found)
    return found


def _each_once(where: str, names: NDArray[np.str_]) -> None:
    """Refuse two clients of one name, as whose data and scores one could not tell apart."""
    ordered = np.sort(names)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(again):
        first, second = (names == again[0]).nonzero()[0][:2].tolist()
        raise DataError(
            f"{where}: every client must have a name of its own, got {str(again[0])!r} for client {first} and "
            f"client {second}. Rename one, or join their examples."
        )


# ---- writing --------------------------------------------------------------------------------------------------------


class ClientColumns(NamedTuple):
    """A client to be written.

    Args:
        columns: column name -> tensor, array or list (n, ...), n >= 1. float64 arrays and lists become float32.
        test: like columns, what the client is tested on. Empty: nothing.
        name: what a person would call it, no two clients alike; a number is written as text. Empty: its number.
    """

    columns: Mapping[str, Any]
    test: Mapping[str, Any] = {}
    name: str | int = ""


def write_folder(
    path: str | Path,
    clients: Population | Iterable[ClientColumns | Mapping[str, Any]],
    central: Mapping[str, Any] | None = None,
) -> None:
    """Write a population as a folder that `from_files` opens; one client at a time is in memory.

    Args:
        path: a new or empty folder.
        clients: a population, or its clients one after another, each with the same columns; a mapping is a client
            without test examples and name.
        central: columns of a test set held by nobody. Default: the population's.

    Raises:
        DataError: a folder with files, no client, a client without examples or with other columns than the first, two
            clients of one name; what was written until then stays, without the offsets, so that it cannot be opened.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> write_folder(folder, ({"x": torch.arange(float(n))} for n in (2, 3)))
        >>> from_files(folder).data(1).columns()["x"]
        tensor([0., 1., 2.])
    """
    where, path = f"write_folder({str(path)!r})", Path(path)
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise DataError(f"{where}: needs a new or empty folder, got one with files. Name another.")
    if not isinstance(clients, Iterable):
        held = clients.central_test()
        central = held.columns() if central is None and held is not None else central
        clients = _of(clients)
    names: list[str] = []
    has_test = False
    with ExitStack() as stack:
        train, test = (stack.enter_context(closing(_Part(where, folder))) for folder in (path, path / _TEST))
        for client in clients:
            found = client if isinstance(client, ClientColumns) else ClientColumns(client)
            train.add(found.columns)
            test.add(found.test) if found.test else test.skip()
            has_test = has_test or bool(found.test)
            names.append(str(found.name))
        if not names:
            raise DataError(f"{where}: needs at least one client, got none. Look at where they come from.")
    if central is not None:
        with closing(_Part(where, path / _CENTRAL)) as rest:
            rest.add(central)
    if any(names):
        called = np.array([name or str(c) for c, name in enumerate(names)])
        _each_once(where, called)
        np.save(path / f"{_NAMES}.npy", called)
    if has_test:
        np.save(path / _TEST / f"{_OFFSETS}.npy", test.offsets())
    np.save(path / f"{_OFFSETS}.npy", train.offsets())  # last: a folder without them is not whole


def _of(population: Population) -> Iterator[ClientColumns]:
    """The clients of a population; their names where they are not their places."""
    for at, client in enumerate(population.clients):
        test, name = population.test_data(client), population.name(client)
        tested = test.columns() if test is not None and len(test) else {}
        yield ClientColumns(population.data(client).columns(), tested, "" if name == str(at) else name)


class _Part:
    """The column files of one folder, open, and how many examples each client has in them."""

    def __init__(self, where: str, folder: Path) -> None:
        self._where, self._folder = where, folder
        self._files: dict[str, IO[bytes]] = {}
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._sizes: list[int] = []

    def close(self) -> None:
        """Write the headers again, now that the number of examples is known."""
        for name, file in self._files.items():
            with file:
                dtype, shape = self._kinds[name]
                file.seek(0)
                file.write(npy_header(dtype, (sum(self._sizes), *shape)))

    def offsets(self) -> NDArray[np.int64]:
        """Where each client's examples begin, and where the last one's end."""
        return np.concatenate([[0], np.cumsum(self._sizes, dtype=np.int64)]).astype(np.int64)

    def skip(self) -> None:
        """A client without examples here."""
        self._sizes.append(0)

    def add(self, columns: Mapping[str, Any]) -> None:
        """One client's examples."""
        who = f"{self._where}: client {len(self._sizes)}"
        arrays = {name: _array(who, name, c) for name, c in as_columns(who, columns).items()}
        kinds = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
        if not self._files:
            self._open(kinds)
        if kinds != self._kinds:
            raise DataError(
                f"{who} must have the columns of the first with examples here, {_words(self._kinds)}, got "
                f"{_words(kinds)}. Give every client the same columns, types and shapes."
            )
        for name, array in arrays.items():
            self._files[name].write(np.ascontiguousarray(array).data)
        self._sizes.append(len(next(iter(arrays.values()))))

    def _open(self, kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> None:
        wrong = [name for name in kinds if name in (_OFFSETS, _NAMES) or not name or set(name) & set("/\\\0")]
        if wrong:
            raise DataError(
                f"{self._where}: a column's name must be a file's and not offsets or names, got {wrong[0]!r}. "
                "Call it something else."
            )
        self._folder.mkdir(exist_ok=True)
        self._kinds = kinds
        for name, (dtype, shape) in kinds.items():
            self._files[name] = (self._folder / f"{name}.npy").open("wb")
            self._files[name].write(npy_header(dtype, (0, *shape)))


def _array(who: str, name: str, column: Tensor) -> NDArray[Any]:
    try:
        found: NDArray[Any] = column.detach().cpu().numpy()
    except TypeError as error:
        raise DataError(
            f"{who}: columns must be of a type that NumPy has, got {column.dtype} in column {name!r}. Use float32."
        ) from error
    if found.dtype.str not in NPY_TYPES:
        raise DataError(
            f"{who}: columns must be of one of the types {', '.join(NPY_TYPES)}, got {column.dtype} in column "
            f"{name!r}. Convert it; int64 holds most whole numbers."
        )
    return found


def _words(kinds: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in sorted(kinds.items()))
