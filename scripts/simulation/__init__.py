"""A fleet on a virtual clock: the real deciders of both sides, and a network drawn from a seed."""
