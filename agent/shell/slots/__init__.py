"""Artifacts and the journal on disk."""

from agent.shell.slots.slots import Slots

__all__ = ["Slots"]
