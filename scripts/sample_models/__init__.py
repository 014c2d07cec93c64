"""How the sample models are made: real digits, a small network, two int8 forms of it."""

import os

# Before onnxruntime is loaded: it would report to its makers.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
