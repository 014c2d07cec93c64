"""Telemetry that waits on disk until the controller has it."""

from agent.shell.outbox.outbox import Outbox

__all__ = ["Outbox"]
