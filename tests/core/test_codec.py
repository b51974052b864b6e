import contextlib
import struct
import tracemalloc
from math import copysign, prod

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, example, given, settings

from partwise.core.codec import PREFIX_BYTES, decode, encode, encode_parts, encoded_size, join, message_length, split
from partwise.core.errors import ProtocolError
from wire import (
    ARRAY,
    DICT,
    INTS,
    LIST,
    NAMED,
    OBJECT,
    SCALAR,
    SET,
    TENSOR,
    Nothing,
    Pair,
    Ratio,
    head,
    mark,
    same,
    sealed,
)

TORCH = [
    torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip
NUMPY = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]


def tensors(dtype, shape):
    size = prod(shape) * dtype.itemsize
    if dtype is torch.bool:
        return st.lists(st.booleans(), min_size=prod(shape), max_size=prod(shape)).map(
            lambda v: torch.tensor(v, dtype=dtype).reshape(shape)
        )
    return st.binary(min_size=size, max_size=size).map(
        lambda b: (torch.frombuffer(bytearray(b), dtype=dtype) if b else torch.empty(0, dtype=dtype)).reshape(shape)
    )


def arrays(dtype, shape):
    size = prod(shape) * np.dtype(dtype).itemsize
    return st.binary(min_size=size, max_size=size).map(
        lambda b: np.frombuffer(bytes(x & 1 for x in b) if dtype == "bool" else b, dtype).reshape(shape)
    )


SHAPES = st.sampled_from([(), (0,), (3,), (2, 3), (0, 4), (41,), (1, 1, 5)])
TENSORS = st.tuples(st.sampled_from(TORCH), SHAPES).flatmap(lambda a: tensors(*a))
ARRAYS = st.tuples(st.sampled_from(NUMPY), SHAPES).flatmap(lambda a: arrays(*a))
IDS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=90).map(lambda v: torch.tensor(sorted(v), dtype=torch.int64))
KEYS = st.recursive(st.text(max_size=5) | st.integers(), lambda k: st.lists(k, max_size=3).map(tuple), max_leaves=4)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.binary(max_size=20)
    | st.frozensets(st.integers(-(2**70), 2**70) | st.integers(0, 40), max_size=30)
    | TENSORS
    | ARRAYS
    | IDS
    | ARRAYS.filter(lambda a: a.ndim == 1 and len(a)).map(lambda a: a[0])
)
TREES = st.recursive(
    LEAVES,
    lambda t: (
        st.lists(t, max_size=4)
        | st.lists(t, max_size=4).map(tuple)
        | st.dictionaries(KEYS, t, max_size=4)
        | st.builds(Pair, t, t)
        | st.builds(Ratio, st.floats(min_value=0), t)
    ),
    max_leaves=8,
)
CALM = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class TestRoundTrip:
    @CALM
    @given(TREES)
    @example({"a": [Nothing(), Nothing()], ("x", (1, 2**90)): float("nan"), -1: "a\ud800", "": -0.0})
    @example(frozenset(range(0, 5000, 7)))
    @example(b"ab" * 4000)
    @example([None] * 66_000)
    def test_every_tree_comes_back_to_the_last_bit(self, tree):
        message = encode(tree)
        assert same(decode(message), tree)
        assert same(decode(bytearray(message)), tree)

    @CALM
    @given(TREES)
    def test_size_and_parts_agree_with_the_bytes(self, tree):
        message = encode(tree)
        assert encode(tree) == message
        assert encoded_size(tree) == len(message) == message_length(message[:PREFIX_BYTES])
        assert b"".join(encode_parts(tree)) == message
        assert same(decode(encode(tree, checksummed=False)), tree)

    @CALM
    @given(TREES)
    def test_split_and_join(self, tree):
        skeleton, named = split(tree)
        assert same(join(skeleton, named), tree)

    @pytest.mark.parametrize("dtype", TORCH, ids=str)
    def test_every_dtype(self, dtype):
        pattern = torch.tensor(
            [i * 37 % 251 % (2 if dtype is torch.bool else 256) for i in range(48)], dtype=torch.uint8
        )
        tensor = pattern.view(dtype).reshape(-1, 3)
        assert same(decode(encode(tensor)), tensor)

    def test_nan_bits_survive(self):
        odd = struct.unpack("<d", bytes([3, 0, 0, 0, 0, 0, 0xF8, 0xFF]))[0]
        back = decode(encode([odd, -0.0]))
        assert struct.pack("<d", back[0]) == bytes([3, 0, 0, 0, 0, 0, 0xF8, 0xFF])
        assert copysign(1, back[1]) == -1

    def test_non_contiguous_shared_and_trained_tensors(self):
        base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
        tree = [base.t(), base[::2, 1::2], base[:, :1].expand(4, 5), torch.nn.Parameter(base[1]), base, base]
        back = decode(encode(tree))
        assert all(torch.equal(a, b) for a, b in zip(tree, back, strict=True))
        assert type(back[3]) is torch.Tensor
        conjugated = torch.tensor([1 + 2j]).conj()
        assert decode(encode(conjugated)).tolist() == [1 - 2j]

    def test_arrays_of_the_other_byte_order_and_negative_strides(self):
        tree = [np.array([1, 256, 70000], ">i4"), np.arange(5, dtype=np.float64)[::-1], np.float64(2.5), np.bool_(True)]
        back = decode(encode(tree))
        assert [np.asarray(x).tolist() for x in back] == [[1, 256, 70000], [4, 3, 2, 1, 0], 2.5, True]
        assert back[0].dtype == np.dtype("<i4")
        assert type(back[2]) is np.float64
        back = join(*split(tree))
        assert [np.asarray(x).tolist() for x in back] == [[1, 256, 70000], [4, 3, 2, 1, 0], 2.5, True]

    def test_names_of_split_tensors_differ(self):
        tree = {"a/b": torch.ones(1), "a": {"b": torch.zeros(2)}, "__metadata__": torch.ones(3)}
        skeleton, named = split(tree)
        assert set(named) == {"a/b", "a/b~1", "__metadata__~1"}
        assert same(join(skeleton, named), tree)
        with pytest.raises(ProtocolError, match=r"kept apart must be there, got none named 'a/b~1'\. Restore its file"):
            join(skeleton, {"a/b": torch.ones(1)})

    def test_a_dict_keeps_its_order(self):
        assert list(decode(encode({"b": 1, "a": 2, 3: 0}))) == ["b", "a", 3]
        assert encode({"b": 1, "a": 2}) != encode({"a": 2, "b": 1})

    def test_equal_sets_give_equal_bytes(self):
        assert encode(frozenset([9, 1, 2**70])) == encode(frozenset([2**70, 9, 1]))


class TestViews:
    def test_parts_of_floats_are_views_of_the_tensor(self):
        tensor = torch.zeros(1000)
        parts = encode_parts({"w": tensor})
        tensor[0] = 1.0
        assert bytes(parts[-1][:4]) == struct.pack("<f", 1.0)

    def test_a_writable_buffer_is_shared_and_a_read_only_one_is_not(self):
        message = bytearray(encode([torch.zeros(4), torch.ones(3)]))
        first, second = decode(message)
        first.fill_(7.0)
        assert bytes(message).count(struct.pack("<f", 7.0)) == 4
        assert second.tolist() == [1.0] * 3
        frozen = encode([torch.zeros(4), np.zeros(2)])
        tensor, array = decode(frozen)
        tensor.fill_(7.0)
        array[:] = 7.0
        assert decode(frozen)[0].tolist() == [0.0] * 4

    @pytest.mark.parametrize("shift", range(1, 8))
    def test_a_buffer_that_is_not_aligned(self, shift):
        tree = [torch.tensor([1.5, -2.5], dtype=torch.float64), np.array([3.25]), 7]
        buffer = bytearray(shift) + encode(tree)
        assert same(decode(memoryview(buffer)[shift:]), tree)


IDS_BLOCK = (4, 1, 100)  # int64, one dimension of 100
FRAME = zstandard.ZstdCompressor().compress(bytes(100))


class TestMalformed:
    GOOD = encode({"w": torch.arange(3.0), "n": 5})

    @pytest.mark.parametrize(
        ("message", "sentence"),
        [
            (b"", r"has at least 28 bytes, got 0: it is truncated"),
            (b"PTW", r"has at least 28 bytes, got 3: it is truncated"),
            (
                b"\x80\x04K\x01.",
                r"a message begins with b'PTWS', got b'\\x80\\x04K\\x01'\. Is this a Partwise message\?",
            ),
            (
                sealed(b"\xc0", version=9),
                r"message of format version 9, this is 1: the sender runs another Partwise\. Install",
            ),
            (sealed(b"\xc0", flags=6), r"a prefix must be consistent"),
            (sealed(b"\xc0", total=3), r"a prefix must be consistent"),
            (GOOD[:-1], r"must have the \d+ bytes it states, got \d+: it is truncated\. Send it again\."),
            (GOOD[:PREFIX_BYTES], r"it is truncated"),
            (GOOD + b"\0", r"it is longer than it says"),
            (GOOD[:40] + bytes([GOOD[40] ^ 1]) + GOOD[41:], r"the header's checksum must match, got another"),
            (GOOD[:-1] + b"\x7f", r"the blocks' checksum must match, got another: bytes changed on the way"),
            (sealed(head(0, 0)), r"a tree must be whole, got one that breaks off"),
            (sealed(head(0, 0, mark(LIST, 1))), r"count in bounds|breaks off"),
            (sealed(head(0, 0, 1, 2)), r"holds one tree, got more behind it"),
            (sealed(head(0, 0, None), bytes(8)), r"must fill the message's \d+ bytes"),
            (sealed(head(0, 1, 11, 1, 2, 0, None), bytes(8)), r"one tree, got more behind it"),
            (sealed(head(0, 1, 11, 1, 3, 0, mark(TENSOR)), bytes(8)), r"must fill the message's"),
            (sealed(head(0, 1, 11, 1, 1, 0, mark(TENSOR)), bytes(8)), r"must fill the message's"),
            (sealed(head(0, 1, 11, 1, -2, 0, mark(TENSOR)), bytes(8)), r"a dimension must be .* from 0 to .*, got -2"),
            (sealed(head(0, 1, 11, 1, 2.0, 0, mark(TENSOR)), bytes(8)), r"a dimension must be .*, got 2\.0"),
            (sealed(head(0, 1, 11, 33, 1, 0, mark(TENSOR)), bytes(8)), r"the number of dimensions must be .* to 32"),
            (sealed(head(0, 1, 99, 1, 2, 0, mark(TENSOR)), bytes(8)), r"dtype must be a known one, got code 99"),
            (sealed(head(0, 1, 11, 1, 2, 4, 0, 0, 8, mark(TENSOR)), bytes(8)), r"packing and length must fit"),
            (sealed(head(0, 1, *IDS_BLOCK, 1, 1, 0, 8, mark(TENSOR)), bytes(8)), r"packing and length must fit"),
            (sealed(head(0, 1, *IDS_BLOCK, 1, 3, 0, 300, mark(TENSOR)), bytes(300)), r"packing and length must fit"),
            (sealed(head(0, 1, *IDS_BLOCK, 2, 0, 0, 8, mark(TENSOR)), bytes(8)), r"packing and length must fit"),
            (
                sealed(head(0, 1, *IDS_BLOCK, 17, 0, 0, 8, mark(TENSOR)), bytes(8)),
                r"a packing must be .* from 0 to 16, got 17",
            ),
            (sealed(head(0, 1, *IDS_BLOCK, 8, 0, 0, 8, mark(TENSOR)), bytes(8)), r"packing and length must fit"),
            (sealed(head(0, 1, *IDS_BLOCK, 9, 1, 0, 300, mark(TENSOR)), bytes(300)), r"packing and length must fit"),
            (sealed(head(0, 1, *IDS_BLOCK, 16, 1, 0, 300, mark(TENSOR)), bytes(300)), r"packing and length must fit"),
            (
                sealed(head(0, 1, *IDS_BLOCK, 16, 0, 0, 40, mark(TENSOR)), bytes(40)),
                r"a set of 100 numbers must have as many bits, got 0",
            ),
            (
                sealed(head(0, 1, *IDS_BLOCK, 8, 3, 0, 60, mark(TENSOR)), bytes(60)),
                r"a set of 100 numbers must have as many bits, got 0",
            ),
            (
                sealed(head(0, 1, *IDS_BLOCK, 5, 1, 0, 8, mark(TENSOR)), b"no frame"),
                r"zstd block must be a whole frame",
            ),
            (
                sealed(head(0, 1, 4, 1, 9, 5, 1, 0, len(FRAME), mark(TENSOR)), FRAME),
                r"unpack to 9 bytes, got a frame of 100",
            ),
            (
                sealed(head(0, 1, *IDS_BLOCK, 5, 1, 0, len(FRAME) - 1, mark(TENSOR)), FRAME[:-1]),
                r"zstd block must",
            ),
            (sealed(head(0, 1, *IDS_BLOCK, 5, 1, 0, len(FRAME) + 1, mark(TENSOR)), FRAME + b"x"), r"zstd block must"),
            (sealed(head(0, 1, 0, 1, 8, 0, mark(TENSOR)), b"\1\0\1\0\1\2\0\0"), r"a bool block holds bytes 0 and 1"),
            (sealed(head(0, 1, 10, 1, 4, 0, mark(ARRAY)), bytes(8)), r"NumPy has no bfloat16"),
            (sealed(head(0, 1, 11, 3, 0, 2**62, 2**62, 0, mark(ARRAY)), b""), r"a shape must be one a tensor can have"),
            (
                sealed(head(0, 1, 11, 3, 0, 2**62, 2**62, 0, mark(TENSOR)), b""),
                r"a shape must be one a tensor can have",
            ),
            (sealed(head(0, 0, mark(TENSOR))), r"breaks off"),
            (sealed(head(0, 1, 11, 1, 2, 0, mark(INTS)), bytes(8)), r"a frozenset's block holds a row of int"),
            (sealed(head(0, 0, mark(SET, 1), 1.5)), r"a frozenset holds int, got another kind"),
            (sealed(head(0, 0, mark(DICT, 1), 1.5, 0)), r"a dict's keys are str, int or tuples of them, got float"),
            (sealed(head(0, 0, mark(DICT, 1), mark(LIST, 0), 0)), r"a dict's keys are .*, got list"),
            (sealed(head(0, 0, mark(DICT, 2), 1, 0, 1, 0)), r"a dict's keys must differ, got one twice"),
            (sealed(head(0, 0, mark(OBJECT, 0))), r"must name one of 0 classes, got 0"),
            (sealed(head(0, 0, mark(77))), r"a mark must be a known one with a count in bounds, got 77"),
            (sealed(head(0, 0, mark(LIST, 200), *[0] * 9)), r"a count in bounds, got 1 with 200"),
            (sealed(head(0, 0, mark(NAMED), "w")), r"kept apart must be there, got none named 'w'"),
            (sealed(head(0, 0, msgpack.ExtType(SCALAR, b"\x0b\0"))), r"a scalar must have a known dtype and its size"),
            (sealed(head(0, 0, msgpack.ExtType(SCALAR, b""))), r"a scalar must have a known dtype and its size"),
            (sealed(head(0, 0, msgpack.ExtType(SCALAR, b"\0\2"))), r"a bool scalar is byte 0 or 1"),
            (sealed(head(0, 0, [])), r"holds scalars and marks, got a list"),
            (sealed(head(0, 0, [1])), r"a header must be msgpack scalars, got something else"),
            (sealed(head(0, 0, msgpack.Timestamp(1))), r"holds scalars and marks, got a Timestamp"),
            (sealed(head(0, 0, "abc")[:-1]), r"a header must be whole"),
            (sealed(head(0, 0) + b"\xc1"), r"a header must be msgpack scalars"),
            (sealed(head("x")), r"the number of classes must be .*, got 'x'"),
            (sealed(head(0, 2**40)), r"the number of blocks must be .*, got 1099511627776"),
            (sealed(head(0, 0, *[mark(LIST, 1)] * 65, 0)), r"at most 64 deep, got more"),
        ],
    )
    def test_each_fault_has_its_sentence(self, message, sentence):
        with pytest.raises(ProtocolError, match=sentence):
            decode(message)
        with pytest.raises(ProtocolError, match=sentence):
            decode(bytearray(message))

    def test_bytes_between_blocks(self):
        tree = [torch.zeros(1), torch.zeros(1)]
        message = bytearray(encode(tree))
        message[-6] = 1
        with pytest.raises(ProtocolError, match="bytes between blocks must be zero"):
            decode(message)

    def test_larger_than_the_limit(self):
        message = encode(torch.zeros(100))
        assert len(decode(message, max_bytes=len(message))) == 100
        with pytest.raises(
            ProtocolError, match=r"may have 300 bytes, got one of \d+\. Raise max_bytes if it is meant to"
        ):
            decode(message, max_bytes=300)
        with pytest.raises(ProtocolError, match="may have 300 bytes"):
            message_length(message[:PREFIX_BYTES], max_bytes=300)

    def test_a_bomb_is_refused_before_it_is_unpacked(self):
        bomb = encode(torch.zeros(10**6, dtype=torch.int8))
        assert len(bomb) < 1000
        with pytest.raises(ProtocolError, match=r"tensors may have 99999 bytes, got more\. Raise max_bytes"):
            decode(bomb, max_bytes=99_999)
        claim = sealed(head(0, 1, 1, 2, 2**30, 2**20, 4, 0, 0, len(FRAME), mark(TENSOR)), FRAME)
        with pytest.raises(ProtocolError, match="got more"):
            decode(claim)

    def test_nested_msgpack_arrays_allocate_nothing(self):
        bomb = b"".join(b"\xdd" + struct.pack(">I", 100_000) for _ in range(500)) + b"\xc0" * 100_000
        with pytest.raises(ProtocolError, match="msgpack scalars"):
            decode(sealed(b"\0\0" + bomb))


class TestFuzz:
    """Only ProtocolError ever comes out."""

    SEEDS = (
        encode(
            {
                "w": torch.arange(40.0),
                "ids": torch.arange(0, 900, 9),
                "n": [1, -(2**80), None, "é"],
                ("a", 1): b"x" * 1100,
            }
        ),
        encode(
            [Pair(1, Ratio(2.0)), frozenset(range(50)), np.float32(1), np.arange(3), torch.zeros(70, dtype=torch.int32)]
        ),
    )

    @staticmethod
    def tried(message):
        with contextlib.suppress(ProtocolError):
            decode(message, max_bytes=1 << 20)

    @CALM
    @given(st.binary(max_size=200))
    def test_random_bytes(self, data):
        self.tried(data)
        self.tried(b"PTWS\1\0" + data)
        self.tried(sealed(data))
        self.tried(sealed(b"\0\0" + data))
        self.tried(sealed(data, data))

    @settings(CALM, max_examples=200)
    @given(st.sampled_from(SEEDS), st.data())
    def test_flipped_bits_are_all_found(self, message, data):
        bit = data.draw(st.integers(0, 8 * len(message) - 1))
        broken = bytearray(message)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            decode(broken)

    @CALM
    @given(st.sampled_from(SEEDS), st.data())
    def test_truncations_are_all_found(self, message, data):
        with pytest.raises(ProtocolError):
            decode(message[: data.draw(st.integers(0, len(message) - 1))])

    @settings(CALM, max_examples=200)
    @given(st.sampled_from(SEEDS), st.data())
    def test_headers_changed_under_a_right_checksum(self, message, data):
        length = struct.unpack_from("<I", message, 8)[0]
        header = bytearray(message[PREFIX_BYTES : PREFIX_BYTES + length])
        for _ in range(data.draw(st.integers(1, 3))):
            header[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
        payload = message[PREFIX_BYTES + length + -(PREFIX_BYTES + length) % 8 :]
        self.tried(sealed(bytes(header), payload))


def test_a_header_that_breaks_off_anywhere_is_refused():
    """Also inside a shape, and with a checksum that is right."""
    tokens = [1, "Whole", 3, 1, 11, 2, 3, 4, mark(TENSOR)]
    for stop in range(len(tokens)):
        with pytest.raises(ProtocolError):
            decode(sealed(head(*tokens[:stop])))
    with pytest.raises(ProtocolError, match="a tree must be whole, got one that breaks off"):
        decode(sealed(head(0, 1, 11, 2, 3)))


@pytest.mark.parametrize("method", [1 | 4, 16, 8])
def test_no_packing_takes_more_room_than_the_limit(method):
    """A limit of a megabyte: neither elements narrowed to eight bytes each, nor sets of more bits than elements."""
    size = 1 << 20
    if method & 4:  # 2^20 bytes, as words of 8 bytes, in a frame of less than a kilobyte
        press = zstandard.ZstdCompressor(write_content_size=True)
        data = press.compress(bytes(8 * size))
        block = [5, 1, size, method, 8, 0, len(data)]
    else:  # one number, and a row of 2^23 bits
        data = b"\xff" * size
        block = [4, 1, 1, method, 0, 0, len(data)]
    message = sealed(head(0, 1, *block, mark(TENSOR)), data)
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="packing and length must fit its dtype and shape"):
        decode(message, max_bytes=2 * size)
    (_, peak), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    assert peak < size
