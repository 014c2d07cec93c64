"""How long, and how much, unless `fleet serve` is told otherwise."""

MEBIBYTE = 1024 * 1024
TELEMETRY_DAYS = 7
"""Windows and health as they came; their sums are kept longer."""

SAMPLES_DAYS = 30
SAMPLES_MB = 1024
"""MiB of captured inputs."""
