"""One device: a daemon that keeps the right model running, and an engine that runs it."""
