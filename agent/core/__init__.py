"""Decides what the device does. No clock, disk, thread, socket or log in here."""
