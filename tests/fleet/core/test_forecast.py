"""What a plan says of a device: bytes, and refusals by the device's own rules."""

from typing import Any

import pytest

from fleet.core.census import Census, Device
from fleet.core.forecast import forecast
from tests.fleet.samples import sample_manifest
from wire.ids import digest_of
from wire.manifest import Manifest, Requires
from wire.telemetry import Health
from wire.transfer import Offer
from wire.twin import Capabilities, Reason, Reported

MEBIBYTE = 1024 * 1024


def a_device(free_bytes: int = 2**30, available: int = 2**30, **capable: Any) -> Device:
    census = Census()
    able = {"architecture": "aarch64", "runtimes": {"onnxruntime": "1.24.1"}} | capable
    reported = Reported(
        device="cam-1", desired_revision=0, agent="t", boot="b", capabilities=Capabilities(**able)
    )
    census.hear_reported(reported, 1.0, retained=False)
    health = Health(
        device="cam-1", boot="b", seq=1, at=1, uptime_s=1, cpu_percent=1, load_1m=1,
        memory_total_bytes=2**30, memory_available_bytes=available, disk_free_bytes=free_bytes,
        agent_cpu_percent=1, agent_rss_bytes=1,
    )  # fmt: skip
    census.hear_health(health, 1.0)
    return census.get("cam-1")


def a_release(**requires: Any) -> Manifest:
    manifest = sample_manifest(2)
    needs = Requires(**requires)
    variants = (manifest.variants[0].model_copy(update={"requires": needs}),)
    return manifest.model_copy(update={"variants": variants})


def offers_of(manifest: Manifest) -> list[Offer]:
    def plain(file: str, size: int) -> Offer:
        return Offer(
            file=file, file_bytes=size, transfer=file, transfer_bytes=size, index=digest_of(b"i")
        )

    artifact = manifest.variants[0].artifact.digest
    delta = Offer(
        file=artifact, file_bytes=MEBIBYTE, encoding="delta", base=digest_of(b"old"),
        transfer=digest_of(b"delta"), transfer_bytes=5000, index=digest_of(b"j"),
    )  # fmt: skip
    return [plain(manifest.digest, 300), delta, plain(artifact, MEBIBYTE)]


def test_a_device_fetches_a_delta_where_it_holds_the_base_and_the_whole_file_elsewhere() -> None:
    release = a_release()
    artifact = release.variants[0].artifact.digest

    def found(*held: str) -> tuple[str, int, int]:
        said = forecast(release, release.digest, offers_of(release), a_device(), held, 0)
        return said.how, said.bytes_coming, said.bytes_whole

    assert found() == ("whole", MEBIBYTE + 300, MEBIBYTE + 300)
    assert found(digest_of(b"old")) == ("delta", 5300, MEBIBYTE + 300)
    assert found(release.digest, artifact) == ("held", 0, 0)


@pytest.mark.parametrize(
    ("requires", "device", "reason", "says"),
    [
        ({"architectures": ("x86_64",)}, a_device(), Reason.WRONG_ARCH, "needs x86_64"),
        ({}, a_device(runtimes={}), Reason.NO_RUNTIME, "no runtime"),
        ({"memory_bytes": 900 * MEBIBYTE}, a_device(available=500 * MEBIBYTE),
         Reason.OUT_OF_MEMORY, "500 MiB are free for engines"),
        ({}, a_device(free_bytes=1000), Reason.NO_SPACE,
         f"expected {MEBIBYTE + 300} bytes free for artifacts, got 1000"),
    ],
)  # fmt: skip
def test_a_refusal_is_foretold_in_the_words_of_the_device(
    requires: dict[str, Any], device: Device, reason: Reason, says: str
) -> None:
    release = a_release(**requires)

    said = forecast(release, release.digest, offers_of(release), device, (), 0)

    assert (said.how, said.reason, said.bytes_coming) == ("refused", reason, 0)
    assert says in said.detail


def test_what_the_device_would_clear_counts_as_room() -> None:
    release = a_release()
    small = a_device(free_bytes=1000)

    said = forecast(release, release.digest, offers_of(release), small, (), 2 * MEBIBYTE)

    assert said.how == "whole"


def test_what_a_device_does_not_report_refuses_nothing() -> None:
    release = a_release(custom_operators=("Special",), tflite_operators={"ADD": 9})
    tflite = release.variants[0].model_copy(update={"format": "tflite"})
    release = release.model_copy(update={"variants": (tflite,)})
    offers = offers_of(release)

    able = a_device(runtimes={"ai-edge-litert": "2.1"})

    assert forecast(release, release.digest, offers, able, (), 0).how == "whole"
    silent = forecast(release, release.digest, offers, Device("cam-9"), (), 0)
    assert (silent.how, silent.bytes_coming) == ("unknown", MEBIBYTE + 300)
