"""Populations from what a user has: arrays, a torch data set, a Hugging Face data set.

Shapes: n examples, N clients.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partwise.core.errors import DataError
from partwise.core.population import Dataset
from partwise.core.rng import numpy_generator
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.availability import Always, Availability
from partwise.populations.columns import as_columns, known
from partwise.populations.partitions import Partitioner, Positions
from partwise.populations.profiles import Constant, Profiles
from partwise.populations.reliability import Reliability, Steady

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Options", "from_arrays", "from_dataset", "from_hugging_face", "from_partition"]


class Options(TypedDict, total=False):
    """What every constructor of a population takes besides the data, by keyword.

    Args:
        test_share: share of each client's examples it is tested on, in [0, 1), rounded down. Default: none.
        test: `last` examples in the order given (the default), or `random` ones.
        min_examples: clients with fewer examples, test included, are left out. Default: 1.
        seed: of the partition and of random test examples. Default: 0.
        central_test: a test set held by nobody. Default: none.
        profiles: how fast the clients are. Default: `Constant()`.
        availability: when they could answer. Default: `Always()`.
        reliability: what becomes of their tasks. Default: `Steady()`.
    """

    test_share: float
    test: Literal["last", "random"]
    min_examples: int
    seed: int
    central_test: Dataset | None
    profiles: Profiles
    availability: Availability
    reliability: Reliability


def from_arrays(columns: Mapping[str, Any], client: Any, **options: Unpack[Options]) -> ArrayPopulation:
    """One client per key.

    Args:
        columns: column name -> tensor, array or list (n, ...). float64 arrays and lists become float32.
        client: one key per example, numbers or text, (n,). The clients are ordered by key and named after it.
        **options: see `Options`.

    Raises:
        DataError: what cannot be used, with the column and the remedy.

    Example:
        >>> two = from_arrays({"x": [1.0, 2.0, 3.0]}, client=["b", "a", "b"])
        >>> two.name(1), two.data(1).columns()["x"]
        ('b', tensor([1., 3.]))
    """
    where = "from_arrays()"
    tensors = as_columns(where, columns)
    names, positions = _groups(where, client, len(next(iter(tensors.values()))))
    return _population(where, tensors, positions, names, options)


def from_partition(columns: Mapping[str, Any], partition: Partitioner, **options: Unpack[Options]) -> ArrayPopulation:
    """Clients made by dividing one data set.

    Args:
        columns: column name -> tensor, array or list (n, ...).
        partition: the rule, such as `Dirichlet(100, alpha=0.3)`.
        **options: see `Options`.

    Example:
        >>> from partwise.populations.partitions import LinearSizes
        >>> from_partition({"y": list(range(30))}, LinearSizes(4)).sizes()
        tensor([ 3,  6,  9, 12])
    """
    where = "from_partition()"
    tensors = as_columns(where, columns)
    return _population(where, tensors, partition.split(tensors, options.get("seed", 0)), [], options)


def from_dataset(
    dataset: Any, client: Any, columns: Sequence[str] = ("x", "y"), **options: Unpack[Options]
) -> ArrayPopulation:
    """Clients from a `torch.utils.data.Dataset`, which is read once into memory.

    Args:
        dataset: `len` and integer positions; an item is a tuple in the order of `columns`, or a mapping.
        client: one key per example, (n,); or the name of the field that holds it, which then is no column.
        columns: what the entries of a tuple are called; ignored for mappings.
        **options: see `Options`.
    """
    where = "from_dataset()"
    if hasattr(dataset, "iloc"):  # goes by the names of its columns, and not by positions
        raise DataError(
            f"{where}: must be given a data set with integer positions, got a {type(dataset).__name__}. "
            'Give columns of a data frame to from_arrays({"x": frame[["age"]], "y": frame["y"]}, client=frame["id"]).'
        )
    items = [_fields(dataset[i], columns) for i in range(len(dataset))]
    if not items:
        raise DataError(f"{where}: needs at least one example, got an empty data set. Check its path and split.")
    odd = next((at for at, item in enumerate(items) if item.keys() != items[0].keys()), None)
    if odd is not None:
        raise DataError(
            f"{where}: every item must have the fields of the first, {', '.join(map(repr, items[0]))}, got "
            f"{', '.join(map(repr, items[odd])) or 'none'} in item {odd}. Give all items the same fields."
        )
    raw = {name: [item[name] for item in items] for name in items[0]}
    if isinstance(client, str):
        client = raw.pop(known(f"from_dataset(client={client!r})", client, raw))
        client = torch.stack(client) if isinstance(client[0], Tensor) else client
    tensors = as_columns(where, raw)
    names, positions = _groups(where, client, len(items))
    return _population(where, tensors, positions, names, options)


class _Columnar(Protocol):
    @property
    def column_names(self) -> Any: ...

    def __getitem__(self, key: Any, /) -> Any: ...


def from_hugging_face(
    dataset: _Columnar | str,
    client: str,
    columns: Sequence[str] = (),
    *,
    split: str = "train",
    **options: Unpack[Options],
) -> ArrayPopulation:
    """Clients from a Hugging Face data set.

    Args:
        dataset: the data set, or its name; a name is downloaded by `datasets` (extra `partwise[datasets]`).
        client: the column with the keys.
        columns: the columns to keep. Default (): all but the keys.
        split: which split of a named data set.
        **options: see `Options`.
    """
    where = "from_hugging_face()"
    table = _load(dataset, split) if isinstance(dataset, str) else dataset
    available = list(table.column_names)
    known(f"from_hugging_face(client={client!r})", client, available)
    chosen = [known(where, name, available) for name in columns] or [name for name in available if name != client]
    tensors = as_columns(where, {name: table[name] for name in chosen})
    names, positions = _groups(where, list(table[client]), len(next(iter(tensors.values()))))
    return _population(where, tensors, positions, names, options)


def _load(name: str, split: str) -> _Columnar:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"from_hugging_face({name!r}): needs the package datasets, got an environment without it. "
            "Install it with: pip install 'partwise[datasets]'."
        ) from error
    loaded: _Columnar = datasets.load_dataset(name, split=split)
    return loaded


def _fields(item: Any, names: Sequence[str]) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return dict(item)
    entries = tuple(item) if isinstance(item, (tuple, list)) else (item,)
    if len(entries) != len(names):
        raise DataError(
            f"from_dataset(columns={tuple(names)}): needs one name per entry of an item, got {len(entries)} entries. "
            "Name them all with columns=(...)."
        )
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise DataError(
            f"from_dataset(columns={tuple(names)}): every entry of an item must have a name of its own, got {twice!r} "
            "twice. Rename one."
        )
    return dict(zip(names, entries, strict=True))


def _groups(where: str, client: Any, n: int) -> tuple[list[str], list[Positions]]:
    """Names and positions of the clients, ordered by key."""
    keys = client.cpu().numpy() if isinstance(client, Tensor) else np.asarray(client)
    if keys.ndim != 1 or len(keys) != n:
        raise DataError(
            f"{where}: client must give one key per example, {n}, got shape {keys.shape}. "
            "Repeat the key for each example of the client."
        )
    at = _first_missing(client, keys)
    if at is not None:
        raise DataError(
            f"{where}: every example needs a client, got {keys[at]} for example {at}. Fill or drop such examples."
        )
    rounded = _rounded(client, keys)
    if rounded is not None:
        raise DataError(
            f"{where}: keys of clients must differ as numbers, got {rounded} among others of which not all are whole "
            "numbers below 2**63. Give all of them as text."
        )
    one = _mistakable(client, keys)
    if one is not None:
        raise DataError(
            f"{where}: keys of clients must differ when they are written, got several that are {one!r}. "
            "Give all of them as text, or all as numbers."
        )
    values, owner = np.unique(_as_text(keys) if keys.dtype.kind in "OS" else keys, return_inverse=True)
    order = np.argsort(owner, kind="stable")
    return [str(v) for v in values], np.split(order, np.cumsum(np.bincount(owner))[:-1])


def _as_text(keys: NDArray[Any]) -> NDArray[np.str_]:
    """Keys as text, (n,): bytes as what they spell in UTF-8, and in hexadecimal where some spell nothing."""
    found = keys.tolist()
    if all(isinstance(key, bytes) for key in found):
        try:
            found = [key.decode() for key in found]
        except UnicodeDecodeError:
            found = [key.hex() for key in found]
    return np.array([str(key) for key in found])


def _rounded(client: Any, keys: NDArray[Any]) -> int | None:
    """A whole number that has become another one in an array of reals, where it may be somebody else's."""
    if keys.dtype.kind != "f" or not isinstance(client, (list, tuple)):
        return None
    return next((key for key in client if isinstance(key, int) and float(key) != key), None)


def _mistakable(client: Any, keys: NDArray[Any]) -> str | None:
    """A text that two different keys become, such as 1 and "1", which would make one client of two."""
    if keys.dtype.kind != "O" and not (keys.dtype.kind in "US" and isinstance(client, (list, tuple))):
        return None
    different = {key for key in client if isinstance(key, Hashable)}
    written = Counter(map(str, different))
    return next((text for text, times in written.items() if times > 1), None)


def _first_missing(client: Any, keys: NDArray[Any]) -> int | None:
    """The first example without a key; `keys` is what became of `client` as an array."""
    if np.ma.is_masked(client):
        return int(np.ma.getmaskarray(client).nonzero()[0][0])
    if keys.dtype.kind in "mM":
        return next(iter(np.isnat(keys).nonzero()[0].tolist()), None)
    if keys.dtype.kind in "US" and isinstance(client, (list, tuple)):  # beside text, NaN has become the text "nan"
        return next((i for i, key in enumerate(client) if _is_missing(key)), None)
    if keys.dtype.kind in "fO":
        return next((i for i, key in enumerate(keys.tolist()) if _is_missing(key)), None)
    return None


def _is_missing(key: Any) -> bool:
    try:
        return key is None or bool(operator.ne(key, key)) or (isinstance(key, float) and math.isinf(key))
    except TypeError:  # pandas' NA, which does not even say whether it is itself
        return True


def _population(
    where: str, columns: dict[str, Tensor], positions: Sequence[Positions], names: Sequence[str], options: Options
) -> ArrayPopulation:
    _check_options(where, options)
    least = max(options.get("min_examples", 1), 1)
    kept = [c for c, part in enumerate(positions) if len(part) >= least]
    if not kept:
        largest = max((len(part) for part in positions), default=0)
        raise DataError(
            f"{where}: needs a client with at least min_examples={least} examples, got at most {largest}. "
            "Lower min_examples."
        )
    train, held_out = [], []
    for client in kept:
        early, late = _divided(positions[client], client, options)
        train.append(early)
        held_out.append(late)
    taken, offsets = _gathered(columns, train)
    test_columns, test_offsets = _gathered(columns, held_out) if options.get("test_share", 0.0) else ({}, None)
    return ArrayPopulation(
        taken,
        offsets,
        test_columns,
        test_offsets,
        central=options.get("central_test"),
        names=[names[c] for c in kept] if names else (),
        profiles=options.get("profiles", Constant()),
        availability=options.get("availability", Always()),
        reliability=options.get("reliability", Steady()),
    )


def _check_options(where: str, options: Options) -> None:
    allowed = list(Options.__annotations__)
    for name in options:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Options are {', '.join(allowed)}."
            raise TypeError(f"{where}: takes the options of Options, got {name!r}. {hint}")
    share, test = options.get("test_share", 0.0), options.get("test", "last")
    if not 0 <= share < 1:
        raise ValueError(f"{where}: test_share must be in [0, 1), got {share}. Use 0.2 for a fifth.")
    if test not in ("last", "random"):
        raise ValueError(
            f"{where}: test must be 'last' or 'random', got {test!r}. Use 'last' for data in order of time."
        )


def _divided(part: Positions, client: int, options: Options) -> tuple[Positions, Positions]:
    """Training and test positions of one client; training keeps at least one."""
    share = options.get("test_share", 0.0)
    cut = len(part) - min(int(share * len(part) + 1e-9), len(part) - 1)
    if options.get("test", "last") == "last":
        return part[:cut], part[cut:]
    mixed = numpy_generator(options.get("seed", 0), "test", client).permutation(part)
    return np.sort(mixed[:cut]), np.sort(mixed[cut:])


def _gathered(columns: dict[str, Tensor], parts: list[Positions]) -> tuple[dict[str, Tensor], Tensor]:
    order = torch.from_numpy(np.concatenate(parts))
    offsets = torch.tensor([0, *map(len, parts)]).cumsum(0)
    n = len(next(iter(columns.values())))
    if len(order) == n and torch.equal(order, torch.arange(n)):
        return dict(columns), offsets  # already in order: nothing is copied
    return {name: column[order] for name, column in columns.items()}, offsets
