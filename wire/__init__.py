"""The words that the agent and the fleet both speak: documents, frames, topics, seals."""
