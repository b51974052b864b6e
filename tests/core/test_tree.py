import dataclasses
import struct
import zlib

import numpy as np
import pytest
import torch

from partwise.core.codec import PREFIX_BYTES, decode, encode, register
from partwise.core.errors import ProtocolError
from wire import OBJECT, Pair, Ratio, head, mark, same, sealed


class TestRegister:
    def test_the_constructor_runs(self):
        good = encode(Ratio(2.5))
        assert decode(good) == Ratio(2.5)
        header = good[PREFIX_BYTES:].replace(struct.pack(">d", 2.5), struct.pack(">d", -2.5))
        with pytest.raises(ProtocolError) as caught:
            decode(sealed(header))
        assert str(caught.value) == (
            "decode(): Ratio refused its fields: Ratio(value=-2.5): must be at least 0, got -2.5. Drop the sign."
        )

    def test_an_unknown_class(self):
        message = sealed(head(1, "Stranger", 0, 0, mark(OBJECT, 0)))
        with pytest.raises(ProtocolError, match=r"must be registered here, got 'Stranger'\. Import the module"):
            decode(message)

    def test_another_version_of_a_class(self):
        old = zlib.crc32(b"left,middle")
        with pytest.raises(ProtocolError, match=r"Pair must have the same fields on both sides, here left, right"):
            decode(sealed(head(1, "Pair", old, 0, mark(OBJECT, 0), 1, 2)))

    def test_what_cannot_be_registered(self):
        with pytest.raises(TypeError, match=r"needs a NamedTuple or a dataclass, got neither"):
            register(int)
        with pytest.raises(TypeError, match=r"needs a NamedTuple or a dataclass, got neither"):
            register(tuple)

    def test_two_classes_of_one_name(self):
        other = dataclasses.make_dataclass("Pair", ["left"])
        with pytest.raises(
            ValueError, match=r"register\(Pair\): registered classes have names of their own, got one in"
        ):
            register(other)

    def test_a_class_that_is_made_again_replaces_itself(self):
        def make():
            @register
            @dataclasses.dataclass(frozen=True)
            class Again:
                x: int

            return Again

        make()
        second = make()
        assert type(decode(encode(second(3)))) is second


class TestEncodeErrors:
    @pytest.mark.parametrize(
        ("tree", "sentence"),
        [
            ({"a": [1, {2}]}, r"a tree holds .* got a set at tree\['a'\]\[1\]\. Convert it, or register its class\."),
            (Pair(1, object()), r"got a object at tree\['right'\]"),
            ({1.5: 0}, r"a dict's keys are str, int or tuples of them, got the key 1\.5 at tree\. Convert it\."),
            ({"a": {True: 0}}, r"got the key True at tree\['a'\]"),
            ({(1, b""): 0}, r"got the key \(1, b''\)"),
            (frozenset(["a"]), r"a frozenset holds int, got another kind at tree\. Convert it to a list\."),
            (frozenset([True]), r"a frozenset holds int"),
            (
                torch.zeros(2, device="meta"),
                r"a tensor is dense, of a plain dtype, with storage .*meta",
            ),
            (torch.zeros([1] * 33), r"at most 32 dimensions, got one with .* dim=33 at tree"),
            (torch.eye(2).to_sparse(), r"got one with .*layout=torch\.sparse_coo"),
            (np.array(["a"]), r"got a ndarray with dtype=<U1"),
            (np.array([None]), r"got a ndarray with dtype=object"),
            (np.ma.masked_array([1, 2], [True, False]), r"got a MaskedArray"),
            (np.datetime64("2020"), r"got a datetime64"),
            (1j, r"got a complex"),
            (bytearray(b"x"), r"got a bytearray"),
        ],
    )
    def test_what_has_no_encoding(self, tree, sentence):
        with pytest.raises(TypeError, match=sentence):
            encode(tree)

    def test_too_deep(self):
        tree = []
        for _ in range(63):
            tree = [tree]
        assert same(decode(encode(tree)), tree)
        for deeper in ([tree], {"a": tree}):
            with pytest.raises(ValueError, match=r"a tree is at most 64 deep, got more at tree.*Flatten it"):
                encode(deeper)
        loop = []
        loop.append(loop)
        with pytest.raises(ValueError, match="at most 64 deep"):
            encode(loop)
