"""Decides for the fleet. No clock, disk, thread, socket or log in here."""
