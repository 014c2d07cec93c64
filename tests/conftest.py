"""What all tests share."""

from hypothesis import HealthCheck, settings

# A busy machine is slow, and that is no finding. The rest is Hypothesis's own, in CI too.
settings.register_profile(
    "farflung", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("farflung")
