"""One device: a daemon that keeps the right model running, and an engine that runs it."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("farflung")
except PackageNotFoundError:  # run from a checkout that was never installed
    VERSION = "0+unknown"
