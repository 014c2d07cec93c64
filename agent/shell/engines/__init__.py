"""Starts engine processes, talks to them, and notices how they end."""

from agent.shell.engines.engines import Engines

__all__ = ["Engines"]
