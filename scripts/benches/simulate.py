"""What a simulated rollout costs: 100,000 devices in four waves, 1% of messages lost, 2% dead.

The time is the process's own on one core; memory is the most that was resident.
"""

import gc
import resource
import sys
import time

from scripts.benches._common import Bar, Result, main, note
from scripts.simulation.__main__ import LARGE_GRAIN_S
from scripts.simulation.parts import Plan
from scripts.simulation.world import World

BARS = [
    Bar("cpu_s", at_most=900),
    Bar("peak_mib", at_most=4096),
    Bar("violations", at_most=0),
    Bar("completed", at_least=1),
]


def measure(quick: bool) -> Result:
    """One good release over the whole fleet."""
    gc.disable()
    devices = 2_000 if quick else 100_000
    plan = Plan(devices=devices, loss=0.01, dead=0.02, grain_s=LARGE_GRAIN_S)
    began, said = time.process_time(), time.monotonic()
    world = World(plan)
    for rollout in world.run():
        if rollout is not None and time.monotonic() - said > 30:
            said = time.monotonic()
            note(f"{world.now / 60:.0f} min: {rollout.because}")
    course = world.course()
    cpu_s = time.process_time() - began
    for at, words in course.story:
        note(f"{at / 60:6.1f} min  {words}")
    return Result(
        figures={
            # So that a quick run is measured by the same bar; the cost grows with the devices.
            "cpu_s": cpu_s * 100_000 / devices,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "violations": len(course.violations),
            "completed": int(course.status == "completed"),
            "events_per_s": course.events / cpu_s,
            "rollout_minutes": course.took_s / 60,
        },
        runs={"waves_s": course.waves_s, "counts": [course.counts]},
    )


if __name__ == "__main__":
    sys.exit(main("simulate", BARS, measure))
