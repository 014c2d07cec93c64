"""Takes models apart: what a file holds, and what can be made of it."""
