"""Everybody: the controller of a fleet, its command line, and the workshop for models."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("farflung")
except PackageNotFoundError:  # run from a checkout that was never installed
    VERSION = "0+unknown"
