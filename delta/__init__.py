"""Weight deltas: a new model file, told as what changed since one that the reader has.

`delta.encode` runs where releases are made; `delta.decode` on a device, in a short-lived process
of its own: `python -m delta decode`.
"""
