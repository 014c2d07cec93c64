"""The serving process: one process is one generation of loaded models."""
