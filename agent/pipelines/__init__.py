"""Pipelines without code: source -> model -> sink, in a process of its own.

The daemon starts `python -m agent.pipelines`, writes one line of JSON (`plan.Plan`) to its standard
input and keeps that open: its end is the order to stop. Counts come back on standard output, one
JSON object a line, and what there is to say on standard error. The models are asked through the
engine's public API, as any app asks them.

Each pipeline is a thread that takes a frame, asks, hands the answer on, and only then lets go of
the frame. Standard library alone, and paho where MQTT is named: pydantic stays with the daemon.
"""
