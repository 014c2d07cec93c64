"""What all tests share."""

import os

from hypothesis import HealthCheck, settings

# onnxruntime would report to its makers; nothing that the tests start speaks to the outside.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# A busy machine is slow, and that is no finding. The rest is Hypothesis's own, in CI too.
settings.register_profile(
    "farflung", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("farflung")
