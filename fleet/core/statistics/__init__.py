"""What a fleet's counts say, and how surely: pure functions of integers."""
