"""How a call is timed and checked, and the rates of the GPU that does it."""
