"""What a step of a whole model costs the host."""
