from __future__ import annotations

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
import torch

from partwise.core.errors import DataError
from partwise.populations.availability import Daily
from partwise.populations.partitions import IID, Dirichlet
from partwise.populations.profiles import Constant
from partwise.populations.reliability import Unreliable
from partwise.workloads import images
from partwise.workloads.download import Remote
from partwise.workloads.images import CIFAR10, MNIST, FashionMNIST

RNG = np.random.default_rng(4)
TRAIN, TEST = RNG.integers(0, 256, (90, 28, 28), np.uint8), RNG.integers(0, 256, (17, 28, 28), np.uint8)
TRAIN_Y, TEST_Y = RNG.integers(0, 10, 90, np.uint8), RNG.integers(0, 10, 17, np.uint8)
FOUR = dict(
    zip(
        ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
        [TRAIN, TRAIN_Y, TEST, TEST_Y],
        strict=True,
    )
)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def npz(tmp_path):
    for name in ("mnist", "fashion_mnist"):
        np.savez_compressed(tmp_path / f"{name}.npz", x_train=TRAIN, y_train=TRAIN_Y, x_test=TEST, y_test=TEST_Y)
    return str(tmp_path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "partwise" / "downloads"


def assert_holds_the_images(work, mean: float, std: float) -> None:
    seen = {}
    for client in work.population.clients:
        data = work.population.data(client).columns()
        seen.update({tuple(x.flatten().tolist()): y for x, y in zip(data["x"], data["y"].tolist(), strict=True)})
    assert len(seen) == 90
    for i in (0, 41, 89):
        normal = torch.tensor((TRAIN[i] / 255.0 - mean) / std, dtype=torch.float32).flatten()
        nearest = min(seen, key=lambda pixels: float((torch.tensor(pixels) - normal).abs().max()))
        assert torch.allclose(torch.tensor(nearest), normal, atol=1e-5)
        assert seen[nearest] == TRAIN_Y[i]
    central = work.population.central_test().columns()
    assert central["x"].shape == (17, 1, 28, 28)
    assert central["y"].tolist() == TEST_Y.tolist()


def test_npz(npz):
    assert_holds_the_images(MNIST(npz, partition=IID(4)).build(0), 0.1307, 0.3081)
    assert_holds_the_images(FashionMNIST(npz, partition=IID(4)).build(0), 0.2860, 0.3530)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inner", ["", "raw", "mnist"])
def test_idx_files(tmp_path, packed, inner):
    (tmp_path / inner).mkdir(exist_ok=True)
    for name, array in FOUR.items():
        path = tmp_path / inner / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    assert_holds_the_images(MNIST(str(tmp_path), partition=IID(4)).build(0), 0.1307, 0.3081)


def test_clients_in_time_reach_the_population(npz):
    told = {"profiles": Constant(0.7), "availability": Daily(seed=3), "reliability": Unreliable(train=0.5)}
    population = MNIST(npz, partition=IID(4), **told).build(0).population
    assert {name: getattr(population, name) for name in told} == told


def test_partition_and_test_share(npz):
    source = MNIST(npz, partition=Dirichlet(5, alpha=0.3, min_partition_size=4), test_share=0.25)
    population = source.build(7).population
    expected = Dirichlet(5, alpha=0.3, min_partition_size=4).split({"y": torch.from_numpy(TRAIN_Y.astype(np.int64))}, 7)
    assert [len(population.data(c)) + len(population.test_data(c)) for c in range(5)] == [len(p) for p in expected]
    assert [len(population.test_data(c)) for c in range(5)] == [len(p) // 4 for p in expected]


@pytest.mark.parametrize(("size", "parameters"), [("small", 215_370), ("paper", 1_663_370), ("mlp", 199_210)])
def test_sizes(npz, size, parameters):
    work = MNIST(npz, partition=IID(4), size=size).build(0)
    params = work.model.init(0)
    assert sum(p.numel() for p in params.values()) == parameters
    assert work.model.widths.keys() == params.keys()
    assert work.model.losses(params, work.population.data(0).columns()).shape == (23,)


def test_unknown_size():
    with pytest.raises(ValueError, match=r"MNIST\(size='big'\): size must be 'small', 'paper' or 'mlp', got 'big'"):
        MNIST(size="big")


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_nothing_there(tmp_path, kind):
    for folder in ("", str(tmp_path)):
        with pytest.raises(DataError, match=r"the four original IDX files there, got neither\. .* set download=True"):
            kind(folder).build(0)


def test_damaged_npz(tmp_path):
    (tmp_path / "mnist.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match=r"must be a NumPy archive with x_train.* Fetch it again"):
        MNIST(str(tmp_path)).build(0)


def test_npz_of_something_else(tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=TRAIN)
    with pytest.raises(DataError, match="must be a NumPy archive with x_train, y_train"):
        MNIST(str(tmp_path)).build(0)


def test_npz_with_pickles_is_refused(tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=np.array([{}], object), y_train=TRAIN_Y, x_test=TEST, y_test=TEST_Y)
    with pytest.raises(DataError, match="got something else"):
        MNIST(str(tmp_path)).build(0)


def test_labels_out_of_range(tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=TRAIN, y_train=TRAIN_Y + 5, x_test=TEST, y_test=TEST_Y)
    with pytest.raises(DataError, match=r"MNIST\(\): needs byte images \(1, 28, 28\) with a label in 0\.\.9 each"):
        MNIST(str(tmp_path)).build(0)


@pytest.mark.parametrize(
    "other",
    [
        {"y_train": TRAIN_Y.astype(int) - 5},
        {"y_train": TRAIN_Y + 0.5},
        {"y_train": TRAIN_Y.astype(str)},
        {"y_test": np.eye(10, dtype=np.uint8)[TEST_Y]},  # one-hot
        {"y_test": TEST_Y[:, None]},
        {"x_test": TEST[:, :14, :14]},
        {"x_train": TRAIN[..., None]},
    ],
)
def test_npz_of_other_images_or_labels(tmp_path, other):
    right = {"x_train": TRAIN, "y_train": TRAIN_Y, "x_test": TEST, "y_test": TEST_Y}
    np.savez(tmp_path / "mnist.npz", **right | other)
    with pytest.raises(DataError, match=r"needs byte images \(1, 28, 28\) with a label in 0\.\.9 each, got \("):
        MNIST(str(tmp_path), partition=IID(9)).build(0)


@pytest.mark.parametrize("raw", [idx(TRAIN)[:-1], idx(TRAIN)[:6], b"\x00\x00\x0d" + idx(TRAIN)[3:], b"\x00"])
def test_damaged_idx(tmp_path, raw):
    for name, array in FOUR.items():
        (tmp_path / name).write_bytes(idx(array))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(raw)
    with pytest.raises(DataError, match="must be an IDX file of bytes, got one that is cut or of another kind"):
        MNIST(str(tmp_path)).build(0)


def test_damaged_gzip(tmp_path):
    for name, array in FOUR.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(TRAIN))[:-20])
    with pytest.raises(DataError, match="must be a gzip file, got something else"):
        MNIST(str(tmp_path)).build(0)


def test_download_fills_the_cache(tmp_path, monkeypatch, own_cache, capsys):
    import hashlib

    remotes = []
    for name, array in FOUR.items():
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress(idx(array)))
        remotes.append(
            Remote(f"mnist/{name}.gz", (path.as_uri(),), f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}")
        )
    monkeypatch.setattr(images, "_MNIST_FILES", tuple(remotes))
    assert_holds_the_images(MNIST(download=True, partition=IID(4)).build(0), 0.1307, 0.3081)
    assert capsys.readouterr().err.count("partwise: downloading file:") == 4
    assert len(list((own_cache / "mnist").iterdir())) == 4
    for path in tmp_path.glob("*.gz"):
        path.unlink()
    assert_holds_the_images(MNIST(partition=IID(4)).build(0), 0.1307, 0.3081)
    assert capsys.readouterr().err == ""


def test_downloads_name_original_hosts_and_digests():
    for remote in (*images._MNIST_FILES, *images._FASHION_FILES, images._CIFAR_FILE):
        assert remote.digest.startswith("md5:")
        assert len(remote.digest) == 4 + 32
        assert all(url.startswith("http") and url.endswith(".gz") for url in remote.urls)


def records(labels: list[int]) -> bytes:
    return b"".join(bytes([y]) + bytes([(37 * y + k) % 256 for k in range(3072)]) for y in labels)


CIFAR = {f"data_batch_{i}.bin": records([i, 9 - i]) for i in range(1, 6)} | {"test_batch.bin": records([7, 3, 0])}


@pytest.mark.parametrize("form", ["files", "folder", "archive"])
def test_cifar(tmp_path, form):
    inner = tmp_path / "cifar-10-batches-bin" if form == "folder" else tmp_path
    inner.mkdir(exist_ok=True)
    if form == "archive":
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
            for name, raw in CIFAR.items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(raw)
                tar.addfile(member, io.BytesIO(raw))
    else:
        for name, raw in CIFAR.items():
            (inner / name).write_bytes(raw)
    work = CIFAR10(str(tmp_path), partition=IID(1)).build(0)
    data = work.population.data(0).columns()
    assert data["y"].tolist() == [1, 8, 2, 7, 3, 6, 4, 5, 5, 4]
    pixel = (37 * 8 + 1024 + 33) % 256 / 255  # example 1, green, second row, second column
    assert float(data["x"][1, 1, 1, 1]) == pytest.approx((pixel - 0.4822) / 0.2435, abs=1e-5)
    assert work.population.central_test().columns()["y"].tolist() == [7, 3, 0]
    assert work.model.outputs(work.model.init(0), data).shape == (10, 10)


def test_cifar_nothing_there(tmp_path):
    with pytest.raises(
        DataError, match=r"needs cifar-10-binary\.tar\.gz or the files in it, got neither\. .* set download=True"
    ):
        CIFAR10(str(tmp_path)).build(0)


def test_cifar_damaged(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="must hold the binary version of CIFAR-10"):
        CIFAR10(str(tmp_path)).build(0)
    for name, raw in CIFAR.items():
        (tmp_path / name).write_bytes(raw[:-1])
    with pytest.raises(DataError, match="must hold records of 3,073 bytes"):
        CIFAR10(str(tmp_path)).build(0)
    for name, raw in CIFAR.items():
        (tmp_path / name).write_bytes(b"" if name == "data_batch_3.bin" else raw)
    with pytest.raises(DataError, match="must hold records of 3,073 bytes"):
        CIFAR10(str(tmp_path), partition=IID(2)).build(0)


@pytest.mark.shared_data
def test_the_real_digits(shared_data):
    population = MNIST(str(shared_data)).build(0).population
    assert len(population.clients) == 100
    assert int(population.sizes().sum()) == 60_000
    assert len(population.central_test()) == 10_000
    pixels = population.columns["x"][::20]
    assert float(pixels.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(pixels.std()) == pytest.approx(1.0, abs=0.02)
