"""How the sample models are made: real digits, a small network, two int8 forms of it."""
