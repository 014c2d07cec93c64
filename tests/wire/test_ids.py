import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.ids import (
    BUCKETS,
    ReleaseRef,
    bucket_of,
    check_digest,
    check_id,
    check_plain_name,
    digest_hex,
    digest_of,
)

IDS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)


@given(IDS)
def test_every_id_by_the_rule_is_an_id(id):
    assert check_id(id) == id


@pytest.mark.parametrize(
    "text",
    ["", "-", "a-", "-a", "A", "a b", "a/b", "+", "#", "$SYS", "ä", "a\n", "a" * 41, "a.b", "١"],
)
def test_what_a_topic_a_path_or_a_shell_might_read_otherwise_is_no_id(text):
    with pytest.raises(ValueError, match="expected 1 to 40 characters"):
        check_id(text)


@given(st.binary(max_size=64))
def test_a_digest_is_never_an_id(data):
    with pytest.raises(ValueError, match="expected 1 to 40"):
        check_id(digest_hex(digest_of(data)))


@given(IDS, st.integers(1, 2**31 - 1))
def test_a_release_reads_as_it_is_written(model, version):
    ref = ReleaseRef(model, version)

    assert ReleaseRef.parse(str(ref)) == ref


@pytest.mark.parametrize(
    "text", ["detector", "detector@", "detector@0", "detector@-1", "detector@1.5", "detector@x",
             "@7", "Detector@7", "a@b@7", f"detector@{2**31}", "detector@٧", "detector@7 "],
)  # fmt: skip
def test_a_release_written_otherwise_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        ReleaseRef.parse(text)


def test_a_version_of_ten_thousand_digits_is_refused_in_one_line():
    with pytest.raises(ValueError, match="NAME@VERSION"):
        ReleaseRef.parse("detector@" + "9" * 10_000)


def test_a_digest_has_a_short_form_for_topics_and_file_names():
    digest = digest_of(b"")

    assert digest == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest_hex(digest) == digest.partition(":")[2]


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "a" * 64, "a" * 64])
def test_another_spelling_of_a_digest_is_refused(text):
    with pytest.raises(ValueError, match="expected sha256: and 64 hex digits"):
        check_digest(text)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "..\\x", "a\0b", "a\nb", "x" * 121]
)
def test_a_file_name_with_a_way_out_of_its_directory_is_refused(name):
    with pytest.raises(ValueError, match="file name"):
        check_plain_name(name)


def test_devices_spread_evenly_over_two_digit_buckets():
    count = Counter(bucket_of(f"device-{number}") for number in range(64 * BUCKETS))

    assert len(count) == BUCKETS
    assert all(re.fullmatch("[0-9a-f]{2}", bucket) for bucket in count)
    assert max(count.values()) < 2 * 64
