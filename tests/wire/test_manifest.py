from typing import Any

import pytest
from pydantic import ValidationError

from wire.codec import decode, encode
from wire.ids import digest_of
from wire.manifest import Manifest, check_source


def tensor(name: str, datatype: str = "INT8") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": (-1, 10)}


def variant(name: str, **changes: Any) -> dict[str, Any]:
    file = {"name": f"{name}.onnx", "digest": digest_of(name.encode()), "size_bytes": 5}
    return {
        "name": name, "format": "onnx", "artifact": file,
        "inputs": [tensor("input:0")], "outputs": [tensor("output:0", "FP32")],
    } | changes  # fmt: skip


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate(
        {
            "model": "digits",
            "version": 1,
            "inputs": [tensor("image")],
            "outputs": [tensor("scores", "FP32")],
            "variants": [variant("a"), variant("b")],
        }
        | changes
    )


def test_a_manifest_that_travelled_has_the_digest_it_left_with():
    release = manifest(metrics={"accuracy": 0.1 + 0.2}, calibration=[(0.1, 1 / 3)])

    assert decode(Manifest, encode(release)).digest == release.digest
    assert release.digest == digest_of(encode(release))


def test_variants_come_first_and_every_file_once_a_use():
    labels = {"name": "labels.txt", "digest": digest_of(b"l"), "size_bytes": 1}
    golden = {"name": "golden.npz", "digest": digest_of(b"g"), "size_bytes": 2}

    release = manifest(labels=labels, golden=golden)

    names = [file.name for file in release.all_files()]
    assert names == ["a.onnx", "b.onnx", "labels.txt", "golden.npz"]
    assert [file.name for file in release.shared_files()] == names[2:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": [variant("a"), variant("a")]}, "names must differ"),
        ({"variants": []}, "at least 1"),
        ({"variants": [variant("a", inputs=[tensor("x", "FP32")])]}, "variant a: expected tensors"),
        ({"variants": [variant("a", outputs=[])]}, "at least 1"),
        ({"labels": {"name": "l", "digest": digest_of(b"a"), "size_bytes": 9}}, "two sizes"),
        ({"labels": {"name": "../l", "digest": digest_of(b"l"), "size_bytes": 9}}, "plain file"),
        ({"model": "Digits"}, "expected 1 to 40 characters"),
        ({"version": 0}, "greater than or equal to 1"),
        ({"metrics": {"accuracy": float("nan")}}, "finite"),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_agree_with_itself_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        manifest(**changes)


def test_an_unknown_variant_is_a_key_error():
    with pytest.raises(KeyError):
        manifest().variant("c")


@pytest.mark.parametrize(
    "url",
    [
        "https://cache.example/models/{digest}",
        "https://cache.example:8443/{digest}/transfer?key=abc",
        "http://127.0.0.1:8080/{digest}",
        "http://[::1]:8080/{digest}",
    ],
)
def test_a_source_is_https_or_this_very_machine(url):
    assert check_source(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://cache.example/{digest}",
        "http://127.0.0.1.example/{digest}",
        "ftp://cache.example/{digest}",
        "https:///{digest}",
        "https://user:secret@cache.example/{digest}",
        "https://cache.example/{digest}#part",
        "https://cache.example/models",
        "https://cache.example/?file={digest}",
        "https://{digest}.example/x",
        "https://cache.example/{digest}/{digest}",
        "https://cache.example/{digest}/{size}",
        "https://cache.example/a b/{digest}",
        "https://cache.example/\r\nHost: other/{digest}",
        "https://cache.example:99999/{digest}",
        "/{digest}",
    ],
)
def test_any_other_source_is_refused(url):
    with pytest.raises(ValueError):
        check_source(url)
