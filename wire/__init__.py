"""The words that the agent and the fleet both speak: documents, frames, topics, seals."""

# Written here rather than looked up: importlib.metadata would cost every agent 30 ms and 2 MB.
VERSION = "0.1.0"
