"""Everybody: the controller of a fleet, its command line, and the workshop for models."""
