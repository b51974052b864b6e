"""MNIST, Fashion-MNIST and CIFAR-10, divided among clients by a partitioner.

Nothing is downloaded unless `download=True`; then the original files are announced, fetched and checked by digest.

Shapes: n images.
"""

from __future__ import annotations

import gzip
import math
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from partwise.core.errors import DataError
from partwise.core.metrics import Accuracy, Loss
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Examples
from partwise.core.workload import Workload
from partwise.populations.availability import Always, Availability
from partwise.populations.partitions import Dirichlet, Partitioner
from partwise.populations.profiles import Constant, Profiles
from partwise.populations.reliability import Reliability, Steady
from partwise.populations.sources import from_partition
from partwise.workloads.cache import cache_dir
from partwise.workloads.download import Remote
from partwise.workloads.models import ImageCNN, ImageMLP

__all__ = ["CIFAR10", "MNIST", "FashionMNIST"]

Bytes = NDArray[np.uint8]

_CLASSES = 10
_PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _remotes(prefix: str, hosts: tuple[str, ...], digests: tuple[str, ...]) -> tuple[Remote, ...]:
    return tuple(
        Remote(f"{prefix}/{name}.gz", tuple(f"{host}/{name}.gz" for host in hosts), f"md5:{digest}")
        for name, digest in zip(_PARTS, digests, strict=True)
    )


# Digests as the data sets' authors and torchvision publish them.
_MNIST_FILES = _remotes(
    "mnist",
    ("https://ossci-datasets.s3.amazonaws.com/mnist", "http://yann.lecun.com/exdb/mnist"),
    (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
_FASHION_FILES = _remotes(
    "fashion_mnist",
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ),
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
)
_CIFAR_FILE = Remote(
    "cifar-10-binary.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    "md5:c32a1d4ab5d03f1284b67883e8d87530",
)


class _Images(NamedTuple):
    """Images (n, channels, side, side) and labels (n,), as bytes."""

    train: Bytes
    train_labels: Bytes
    test: Bytes
    test_labels: Bytes


class _Kind(NamedTuple):
    """What differs between the data sets; mean and std are those of the training pixels, per channel."""

    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    paper: tuple[int, int, int]


_MNIST = _Kind(1, 28, (0.1307,), (0.3081,), (32, 64, 512))
_FASHION = _Kind(1, 28, (0.2860,), (0.3530,), (32, 64, 512))
_CIFAR = _Kind(3, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), (64, 64, 384))


@dataclass(frozen=True)
class MNIST:
    """Handwritten digits, 60,000 for training and 10,000 as the central test set.

    LeCun, Cortes, Burges; commonly given as CC BY-SA 3.0.

    Args:
        folder: holds `mnist.npz` (`x_train`, `y_train`, `x_test`, `y_test`) or the four original IDX files, with
            or without `.gz`. Default: the user's cache, which `download` fills.
        download: fetch the original files (12 MB) if they are not there.
        partition: who gets which image.
        size: `small` (215,370 parameters), `paper` (McMahan's CNN, 1,663,370) or `mlp` (199,210).
        test_share: share of each client's images it is tested on, at random. Default: none.
        profiles: how fast the clients are.
        availability: when they could answer.
        reliability: what becomes of their tasks.
    """

    folder: Path | str | None = None
    download: bool = False
    partition: Partitioner = field(default_factory=lambda: Dirichlet(100, alpha=0.3))
    size: str = "small"
    test_share: float = 0.0
    profiles: Profiles = field(default_factory=Constant)
    availability: Availability = field(default_factory=Always)
    reliability: Reliability = field(default_factory=Steady)

    def __post_init__(self) -> None:
        _check_size(self, self.size)
        _as_path(self, self.folder)

    def build(self, seed: int) -> Workload:
        images = _idx_or_npz(self, self.folder, "mnist", _MNIST_FILES if self.download else ())
        return _workload(images, _MNIST, self, seed)


@dataclass(frozen=True)
class FashionMNIST:
    """Articles of clothing in MNIST's form: 60,000 and 10,000 images.

    Xiao, Rasul, Vollgraf, "Fashion-MNIST", 2017, arXiv 1708.07747; MIT licence, Zalando SE.

    Args:
        folder: holds `fashion_mnist.npz` or the four original IDX files; they have MNIST's names, so keep the two
            apart. Default: the user's cache, which `download` fills.
        download: fetch the original files (30 MB) if they are not there.
        partition: who gets which image.
        size: as for `MNIST`.
        test_share: share of each client's images it is tested on, at random. Default: none.
        profiles: how fast the clients are.
        availability: when they could answer.
        reliability: what becomes of their tasks.
    """

    folder: Path | str | None = None
    download: bool = False
    partition: Partitioner = field(default_factory=lambda: Dirichlet(100, alpha=0.3))
    size: str = "small"
    test_share: float = 0.0
    profiles: Profiles = field(default_factory=Constant)
    availability: Availability = field(default_factory=Always)
    reliability: Reliability = field(default_factory=Steady)

    def __post_init__(self) -> None:
        _check_size(self, self.size)
        _as_path(self, self.folder)

    def build(self, seed: int) -> Workload:
        images = _idx_or_npz(self, self.folder, "fashion_mnist", _FASHION_FILES if self.download else ())
        return _workload(images, _FASHION, self, seed)


@dataclass(frozen=True)
class CIFAR10:
    """Photographs of ten kinds of things, 50,000 for training and 10,000 as the central test set.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; no licence stated, research use.
    Only the binary version is read: the Python version is pickled, and pickles run code. About 1.3 GB of memory.

    Args:
        folder: holds `cifar-10-binary.tar.gz` or the files in it. Default: the user's cache, which `download` fills.
        download: fetch the original file (170 MB) if it is not there.
        partition: who gets which image.
        size: `small`, `paper` or `mlp`.
        test_share: share of each client's images it is tested on, at random. Default: none.
        profiles: how fast the clients are.
        availability: when they could answer.
        reliability: what becomes of their tasks.
    """

    folder: Path | str | None = None
    download: bool = False
    partition: Partitioner = field(default_factory=lambda: Dirichlet(100, alpha=0.3))
    size: str = "small"
    test_share: float = 0.0
    profiles: Profiles = field(default_factory=Constant)
    availability: Availability = field(default_factory=Always)
    reliability: Reliability = field(default_factory=Steady)

    def __post_init__(self) -> None:
        _check_size(self, self.size)
        _as_path(self, self.folder)

    def build(self, seed: int) -> Workload:
        return _workload(_cifar(self, self.folder, self.download), _CIFAR, self, seed)


def _as_path(part: object, folder: Path | str | None) -> None:
    """Keep a folder as a path, however it was written, so that a specification can freeze it."""
    if folder is not None:
        object.__setattr__(part, "folder", Path(folder))


def _check_size(part: object, size: str) -> None:
    if size not in ("small", "paper", "mlp"):
        name = type(part).__name__
        raise ValueError(f"{name}(size={size!r}): size must be 'small', 'paper' or 'mlp', got {size!r}. Use 'small'.")


def _workload(images: _Images, kind: _Kind, source: MNIST | FashionMNIST | CIFAR10, seed: int) -> Workload:
    _check(source, images, kind)
    population = from_partition(
        {"x": _normalized(images.train, kind), "y": _labels(images.train_labels)},
        source.partition,
        seed=seed,
        test_share=source.test_share,
        test="random",
        central_test=Examples({"x": _normalized(images.test, kind), "y": _labels(images.test_labels)}),
        profiles=source.profiles,
        availability=source.availability,
        reliability=source.reliability,
    )
    module, widths = _network(kind, source.size)
    loss = CrossEntropy()
    model = Model(module, loss, widths=widths, channels_last=source.size != "mlp")
    return Workload(model, population, (Accuracy(), Loss(loss)))


def _network(kind: _Kind, size: str) -> tuple[Callable[[], nn.Module], Mapping[str, tuple[str | None, ...]]]:
    if size == "mlp":
        return partial(ImageMLP, kind.channels * kind.side**2, 200, _CLASSES), ImageMLP.widths()
    conv1, conv2, dense = kind.paper if size == "paper" else (16, 32, 128)
    return partial(ImageCNN, kind.channels, kind.side, conv1, conv2, dense, _CLASSES), ImageCNN.widths(kind.side)


def _normalized(images: Bytes, kind: _Kind) -> Tensor:
    shape = (1, kind.channels, 1, 1)
    # Once for the whole run: 4 bytes a pixel, but no work in a local step.
    pixels = torch.from_numpy(images).to(torch.float32)  # (n, channels, side, side)
    std = torch.tensor(kind.std).view(shape)
    return pixels.div_(255 * std).sub_(torch.tensor(kind.mean).view(shape) / std)


def _labels(labels: Bytes) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _idx_or_npz(part: object, folder: Path | str | None, name: str, files: tuple[Remote, ...]) -> _Images:
    found = _find_idx_or_npz(Path(folder), name) if folder else None
    if found is None and files:
        paths = [remote.fetch(Path(folder) if folder else None) for remote in files]
        found = _from_idx(paths)
    if found is None:
        found = _cached_idx(name) if not folder else None
    if found is None:
        raise DataError(
            f"{type(part).__name__}(folder={str(folder or '')!r}): needs {name}.npz or the four original IDX "
            "files there, got neither. Name the folder that holds them, or set download=True."
        )
    return found


def _cached_idx(name: str) -> _Images | None:
    return _find_idx_or_npz(cache_dir() / "downloads" / name, name)


def _find_idx_or_npz(folder: Path, name: str) -> _Images | None:
    if (folder / f"{name}.npz").is_file():
        return _from_npz(folder / f"{name}.npz")
    for place in (folder, folder / name, folder / "raw"):
        paths = [next((p for p in (place / f"{n}.gz", place / n) if p.is_file()), None) for n in _PARTS]
        if all(paths):
            return _from_idx([path for path in paths if path is not None])
    return None


def _from_npz(path: Path) -> _Images:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            parts = [arrays[key] for key in ("x_train", "y_train", "x_test", "y_test")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: must be a NumPy archive with x_train, y_train, x_test, y_test, got something else ({error}). "
            "Fetch it again."
        ) from error
    return _Images(parts[0][:, None], parts[1], parts[2][:, None], parts[3])


def _from_idx(paths: list[Path]) -> _Images:
    parts = [_idx(path) for path in paths]
    return _Images(parts[0][:, None], parts[1], parts[2][:, None], parts[3])


def _idx(path: Path) -> Bytes:
    """An array in the IDX format: 0, 0, type, rank, sizes as big-endian 32-bit numbers, bytes."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: must be a gzip file, got something else ({error}). Fetch it again.") from error
    rank = raw[3] if len(raw) > 3 else 0
    begin = 4 + 4 * rank
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, begin, 4))
    if raw[:3] != b"\x00\x00\x08" or len(raw) - begin != math.prod(shape):
        raise DataError(
            f"{path}: must be an IDX file of bytes, got one that is cut or of another kind. Fetch it again."
        )
    array: Bytes = np.frombuffer(raw, np.uint8, offset=begin).reshape(shape).copy()
    return array


def _cifar(part: CIFAR10, folder: Path | str | None, download: bool) -> _Images:
    place = Path(folder) if folder else cache_dir() / "downloads"
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for inner in (place, place / "cifar-10-batches-bin"):
        if all((inner / name).is_file() for name in names):
            return _records([(inner / name).read_bytes() for name in names], inner)
    archive = place / _CIFAR_FILE.name
    if download:
        archive = _CIFAR_FILE.fetch(Path(folder) if folder else None)
    if not archive.is_file():
        raise DataError(
            f"CIFAR10(folder={str(folder or '')!r}): needs {archive.name} or the files in it, got neither. "
            "Name the folder that holds the binary version, or set download=True."
        )
    try:
        with tarfile.open(archive) as tar:
            members = [tar.extractfile(f"cifar-10-batches-bin/{name}") for name in names]
            raw = [member.read() for member in members if member is not None]
    except (OSError, KeyError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{archive}: must hold the binary version of CIFAR-10, got ({error}). Fetch it again."
        ) from error
    return _records(raw, archive)


def _records(files: list[bytes], where: Path) -> _Images:
    """Records of one label byte and 3 x 32 x 32 pixels."""
    if any(len(raw) % 3073 or not raw for raw in files) or len(files) != 6:
        raise DataError(f"{where}: must hold records of 3,073 bytes, got files of other lengths. Fetch it again.")
    rows = [np.frombuffer(raw, np.uint8).reshape(-1, 3073) for raw in (b"".join(files[:-1]), files[-1])]
    (train, test) = (r[:, 1:].reshape(-1, 3, 32, 32).copy() for r in rows)
    return _Images(train, rows[0][:, 0], test, rows[1][:, 0])


def _check(part: Any, images: _Images, kind: _Kind) -> None:
    """Refuse files of something else: images of another size, labels that are none."""
    shape = (kind.channels, kind.side, kind.side)
    for pixels, labels in ((images.train, images.train_labels), (images.test, images.test_labels)):
        fits = pixels.shape[1:] == shape and pixels.dtype == np.uint8 and labels.shape == pixels.shape[:1] != (0,)
        if not fits or labels.dtype.kind not in "iu" or not 0 <= int(labels.min()) <= int(labels.max()) < _CLASSES:
            raise DataError(
                f"{type(part).__name__}(): needs byte images {shape} with a label in 0..9 each, got {pixels.shape} "
                f"{pixels.dtype} and {labels.shape} {labels.dtype}. Fetch the files again."
            )
