import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey, VerifyKey

from wire.codec import DecodeError
from wire.command import Command
from wire.seal import Sealer, SealError, Verifier, canonical, key_id
from wire.twin import Desired

ALICE = Sealer(bytes(range(32)))
MALLORY = Sealer(bytes(32))
DESIRED = Desired(device="cam-1", revision=7)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def envelope(sealer: Sealer, **changes: object) -> bytes:
    return json.dumps(json.loads(sealer.seal(DESIRED)) | changes).encode()


def test_what_one_key_sealed_its_public_half_opens():
    assert Verifier((ALICE.public,)).open(Desired, ALICE.seal(DESIRED)) == DESIRED


def test_a_device_may_trust_several_keys_and_an_envelope_carry_several():
    both = json.loads(ALICE.seal(DESIRED))
    both["signatures"] = json.loads(MALLORY.seal(DESIRED))["signatures"] + both["signatures"]

    for trusted in ((ALICE.public,), (MALLORY.public,), (MALLORY.public, ALICE.public)):
        assert Verifier(trusted).open(Desired, json.dumps(both).encode()) == DESIRED


def test_a_stranger_is_refused_by_name():
    with pytest.raises(SealError, match=f"{key_id(ALICE.public)}.*{key_id(MALLORY.public)}"):
        Verifier((ALICE.public,)).open(Desired, MALLORY.seal(DESIRED))


def test_a_strangers_signature_under_a_trusted_name_is_refused():
    forged = json.loads(MALLORY.seal(DESIRED))
    forged["signatures"][0]["key"] = key_id(ALICE.public)

    with pytest.raises(SealError):
        Verifier((ALICE.public,)).open(Desired, json.dumps(forged).encode())


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_no_flipped_bit_is_believed(place, bit):
    sealed = bytearray(ALICE.seal(DESIRED))
    sealed[place % len(sealed)] ^= 1 << bit

    try:
        opened = Verifier((ALICE.public,)).open(Desired, bytes(sealed))
    except (DecodeError, SealError):
        return
    # The flip fell on what nobody reads: the envelope's own version, or an unused bit of base64.
    assert opened == DESIRED


@pytest.mark.parametrize(
    "changes",
    [
        {"signed": {"schema_version": 1, "device": "cam-1", "revision": 8, "releases": []}},
        {"signed": {"schema_version": 1, "device": "cam-2", "revision": 7, "releases": []}},
        {"signatures": []},
        {"signatures": [{"key": key_id(ALICE.public), "sig": "!"}]},
        {"signatures": [{"key": key_id(ALICE.public), "sig": ""}]},
        {"signatures": [{"key": key_id(ALICE.public), "sig": "eHh4" * 21 + "eA=="}]},
    ],
)  # fmt: skip
def test_a_changed_envelope_is_refused(changes):
    with pytest.raises(SealError):
        Verifier((ALICE.public,)).open(Desired, envelope(ALICE, **changes))


def test_one_kind_is_never_taken_for_another():
    command = Command(device="cam-1", id="c-1", verb="ping", expires_at=1)

    with pytest.raises(SealError, match="expected a signed Desired, got a Command"):
        Verifier((ALICE.public,)).open(Desired, ALICE.seal(command))
    with pytest.raises(SealError):
        Verifier((ALICE.public,)).open(Command, envelope(ALICE, kind="Command"))


def test_white_space_and_order_of_keys_do_not_matter():
    spread = json.dumps(json.loads(ALICE.seal(DESIRED)), indent=2, sort_keys=True).encode()

    assert Verifier((ALICE.public,)).open(Desired, spread) == DESIRED


def test_another_implementation_can_check_a_seal_by_the_documented_rule():
    sealed = json.loads(ALICE.seal(DESIRED))
    message = b"farflung/1/Desired\n" + (
        b'{"device":"cam-1","releases":[],"revision":7,"schema_version":1,"shared":true}'
    )

    signature = base64.b64decode(sealed["signatures"][0]["sig"])

    assert VerifyKey(ALICE.public).verify(message, signature) == message
    assert ALICE.public == bytes(SigningKey(bytes(range(32))).verify_key)


@given(JSON)
def test_canonical_bytes_are_json_and_one_fixed_point(value):
    data = canonical(value)

    assert json.loads(data) == value
    assert canonical(json.loads(data)) == data


def test_canonical_bytes_are_sorted_tight_and_not_escaped():
    assert canonical({"ü": [1, None, True], "a": {"b": "x y"}}) == (
        '{"a":{"b":"x y"},"ü":[1,null,true]}'.encode()
    )


@pytest.mark.parametrize("value", [1.0, {"a": [0.5]}, [[1e9]], float("nan")])
def test_a_fraction_is_never_signed(value):
    with pytest.raises(TypeError, match="no fractions"):
        canonical(value)


@pytest.mark.parametrize(
    "signed",
    [
        b'{"a":1.5}',
        b'{"a":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b'{"a":' + b"[" * 985 + b"]" * 985 + b"}",
        b'{"a":' + b"9" * 4_300 + b"}",
        b"[]",
        b"7",
    ],
    ids=lambda signed: repr(signed[:12]),
)
def test_a_hostile_envelope_is_refused_with_one_of_two_errors(signed):
    data = b'{"kind":"Desired","signed":' + signed + b',"signatures":[{"key":"k","sig":"s"}]}'

    with pytest.raises((DecodeError, SealError)):
        Verifier((ALICE.public,)).open(Desired, data)
