"""Corrupted model files, one after the other, through the agent's own trial.

Bit flips, cuts, noise and gaps in an .onnx and a .tflite file, each released under its own digest,
so that nothing but the trial stands in the way. A champion answers an app all the while. Must
hold: no mutant whose golden answers are wrong passes, the champion's process is the same at the
end and never failed a request, and neither it nor the agent grows.

Mutant N of a seed is always the same; --first N begins there.
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.agent.engine.mutants import Arena, Tally, mutants

RUNTIMES = ("ai-edge-litert", "tflite-runtime")
GROWTH_BYTES = 32 * 1024 * 1024
TOLD_S = 5.0
SHIFT = 200
"""Mutants before the other TFLite runtime has its turn."""


def main() -> int:
    """Run for as long as asked; return the exit code."""
    parser = argparse.ArgumentParser("scripts/chaos models", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="begin with mutant N")
    parser.add_argument("--count", type=int, metavar="N", help="end after so many mutants")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    note(f"seed {args.seed}, {args.minutes:g} minutes")
    end = None if args.count is None else args.first + args.count
    tally, number, faults = Tally(), args.first, []
    while not faults and number != end and time.monotonic() < until:
        shift = number // SHIFT
        last = (shift + 1) * SHIFT if end is None else min((shift + 1) * SHIFT, end)
        runtime = RUNTIMES[shift % len(RUNTIMES)]
        faults, number = _shift(runtime, args.seed, range(number, last), until, tally)
    for fault in faults + tally.wrong:
        note(f"FAILED: {fault}")
    note(_told(tally, number))
    held = not faults and not tally.wrong and tally.tried > 0
    again = f"scripts/chaos models --seed {args.seed} --first {args.first}"
    print(f"{'held' if held else 'did not hold'}; again: {again} --count {number - args.first}")
    return 0 if held else 1


def _shift(
    runtime: str, seed: int, numbers: range, until: float, tally: Tally
) -> tuple[list[str], int]:
    """Try some mutants in one arena; return what went wrong, and the next mutant's number."""
    agent = psutil.Process()
    number = numbers.start
    told = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-models-") as folder,
        Arena(Path(folder), ("onnxruntime", runtime)) as arena,
    ):
        before: tuple[int, int] | None = None
        for mutant in itertools.islice(mutants(seed), numbers.start, numbers.stop):
            if time.monotonic() >= until:
                break
            wrong = len(tally.wrong)
            arena.face(mutant, tally)
            number += 1
            if tally.wrong[wrong:]:
                tally.wrong[-1] = f"mutant {number - 1} with {runtime}: {tally.wrong[-1]}"
            if number == numbers.start + 10:  # warm by now
                before = agent.memory_info().rss, arena.champion_bytes()
            if time.monotonic() >= told + TOLD_S:
                told = time.monotonic()
                note(f"{runtime}: {_told(tally, number)}")
        faults = [] if arena.champion_lives else ["the champion's process ended"]
        if before is not None:
            after = agent.memory_info().rss, arena.champion_bytes() if not faults else before[1]
            for who, old, new in zip(("agent", "champion"), before, after, strict=True):
                if new > old + GROWTH_BYTES:
                    faults.append(f"the {who} grew from {old >> 20} to {new >> 20} MiB")
    bad = {status: count for status, count in arena.answers.items() if status != 200}
    if bad or not arena.answers:
        faults.append(f"the champion's answers, HTTP status to count: {dict(arena.answers)}")
    return faults, number


def _told(tally: Tally, number: int) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in tally.refused.most_common())
    passed = f"{tally.passed - len(tally.wrong)} passed with the right answers"
    return f"{tally.tried} mutants, next {number}: {reasons or 'none refused'}, {passed}"


def note(text: str) -> None:
    """Say something beside the answer."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
