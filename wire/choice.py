"""Which variant of a release a device can run, or why none, told from the manifest alone.

A device asks this before it fetches, and the controller when it plans.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from wire.manifest import Manifest, Variant
from wire.twin import Capabilities, Reason

RUNTIMES = {"onnx": ("onnxruntime",), "tflite": ("ai-edge-litert", "tflite-runtime")}
"""Format -> the runtimes that read it, the one that an engine prefers first."""

MEBIBYTE = 1024 * 1024
ENGINE_BYTES = {"onnx": 64 * MEBIBYTE, "tflite": 48 * MEBIBYTE}
"""What an engine takes before it holds a model: the interpreter, NumPy and a runtime, as measured
by proportional set size."""

SHOWN = 3

Operators = Mapping[str, Mapping[str, int]]
"""TFLite runtime -> operator -> the newest version it has; custom ones by name, version 1."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a device has for a model. What is empty or 0 is not known, and refuses nothing."""

    capabilities: Capabilities
    operators: Operators = field(default_factory=dict)
    memory_free_bytes: int = 0
    """Of the machine, what the engines of today hold included: they can make room."""
    memory_limit_bytes: int = 0
    """What the configuration allows an engine beyond its own code."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a variant cannot run here: what it needs, and what there is."""

    reason: Reason
    needs: str


def choose(manifest: Manifest, device: Device) -> Variant | list[Refusal]:
    """Return the first variant that this device can run, or why each of them cannot."""
    refusals = []
    for variant in manifest.variants:
        refusal = refuse(variant, device)
        if refusal is None:
            return variant
        refusals.append(refusal)
    return refusals


def told(manifest: Manifest, refusals: list[Refusal], device: Device) -> tuple[Reason, str]:
    """Return the reason of the variant that came furthest, and what each needs, for people."""
    # Checked in this order, so that the last of them is the nearest to running.
    order = [
        Reason.WRONG_ARCH,
        Reason.NO_RUNTIME,
        Reason.OPSET_TOO_NEW,
        Reason.UNSUPPORTED_OPERATOR,
        Reason.OUT_OF_MEMORY,
    ]
    furthest = max((refusal.reason for refusal in refusals), key=order.index)
    able = device.capabilities
    have = ", ".join(f"{n} {v}" for n, v in able.runtimes.items()) or "no runtime"
    broken = "".join(f"; {n} unusable: {w}" for n, w in able.unusable.items())
    why = "; ".join(
        f"{variant.name} needs {refusal.needs}"
        for variant, refusal in zip(manifest.variants, refusals, strict=True)
    )
    return furthest, f"{why}; here: {able.architecture or 'unknown machine'}, {have}{broken}"[:480]


def short_of_disk(coming_bytes: int, free_bytes: int) -> str:
    """Return what artifacts would take and what is free, empty when they fit."""
    if coming_bytes <= free_bytes:
        return ""
    return f"expected {coming_bytes} bytes free for artifacts, got {max(free_bytes, 0)}"


def refuse(variant: Variant, device: Device) -> Refusal | None:
    """Return why this device cannot run a variant, None when nothing speaks against it."""
    for check in _CHECKS:
        refusal = check(variant, device)
        if refusal is not None:
            return refusal
    return None


def runtime_for(variant: Variant, device: Device) -> str:
    """Return the runtime that an engine here would take for a variant, empty when there is none."""
    there = device.capabilities.runtimes
    return next((name for name in RUNTIMES[variant.format] if name in there), "")


def _machine(variant: Variant, device: Device) -> Refusal | None:
    wanted = variant.requires.architectures
    if not wanted or device.capabilities.architecture in wanted:
        return None
    return Refusal(Reason.WRONG_ARCH, " or ".join(wanted))


def _runtime(variant: Variant, device: Device) -> Refusal | None:
    name = runtime_for(variant, device)
    if not name:
        return Refusal(Reason.NO_RUNTIME, " or ".join(RUNTIMES[variant.format]))
    oldest = variant.requires.runtimes
    if not oldest:
        return None
    if name not in oldest or _numbers(device.capabilities.runtimes[name]) < _numbers(oldest[name]):
        wanted = " or ".join(f"{runtime} {version}" for runtime, version in oldest.items())
        return Refusal(Reason.NO_RUNTIME, f"{wanted} or newer")
    return None


def _file_format(variant: Variant, device: Device) -> Refusal | None:
    able, wanted = device.capabilities, variant.requires.onnx_ir
    if wanted is None or able.onnx_ir is None or wanted <= able.onnx_ir:
        return None
    return Refusal(
        Reason.OPSET_TOO_NEW, f"ONNX IR version {wanted}, onnxruntime reads up to {able.onnx_ir}"
    )


def _opsets(variant: Variant, device: Device) -> Refusal | None:
    known = device.capabilities.onnx_opsets
    newer = [
        f"opset {version} of {domain or 'ai.onnx'}, onnxruntime has up to {known[domain]}"
        for domain, version in variant.requires.onnx_opsets.items()
        # Operators of domains that onnxruntime does not know are custom, or defined in the file.
        if version > known.get(domain, version)
    ]
    return Refusal(Reason.OPSET_TOO_NEW, ", ".join(newer[:SHOWN])) if newer else None


def _operators(variant: Variant, device: Device) -> Refusal | None:
    runtime = runtime_for(variant, device)
    known = device.operators.get(runtime, {})
    needs = variant.requires
    custom = [name for name in needs.custom_operators if name not in known]
    lacking = [f"{name}, which is not built in" for name in custom]
    if known:
        lacking += [
            f"{name} version {version}, {runtime} has "
            + (f"up to {known[name]}" if name in known else "none")
            for name, version in needs.tflite_operators.items()
            if version > known.get(name, 0)
        ]
    return Refusal(Reason.UNSUPPORTED_OPERATOR, ", ".join(lacking[:SHOWN])) if lacking else None


def _memory(variant: Variant, device: Device) -> Refusal | None:
    peak = variant.requires.memory_bytes
    if peak is None:
        return None
    limit, free = device.memory_limit_bytes, device.memory_free_bytes
    if limit and peak > limit:
        return Refusal(
            Reason.OUT_OF_MEMORY,
            f"about {_mib(peak)} MiB of memory, [engine] memory_mb allows {_mib(limit)}",
        )
    whole = peak + ENGINE_BYTES[variant.format]
    for there, kind in ((device.capabilities.memory_bytes, "in all"), (free, "free for engines")):
        if there and whole > there:
            return Refusal(
                Reason.OUT_OF_MEMORY,
                f"about {_mib(whole)} MiB of memory with its engine, {_mib(there)} MiB are {kind}",
            )
    return None


_CHECKS: tuple[Callable[[Variant, Device], Refusal | None], ...] = (
    _machine,
    _runtime,
    _file_format,
    _opsets,
    _operators,
    _memory,
)


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // MEBIBYTE)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])
