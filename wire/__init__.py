"""The words that the agent and the fleet both speak: documents, frames, topics, seals."""

# Written here rather than looked up: importlib.metadata would cost every agent 30 ms and 2 MB.
VERSION = "0.1.0"

TRUSTING = False
"""Whether this process reads only documents that another one of this device has checked, and may do
without checking them again. Set before anything else of this package is imported; see ADR 14."""
