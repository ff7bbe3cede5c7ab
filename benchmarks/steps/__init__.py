"""Steps of attention that are timed or compiled: their cases, and the tensors of these."""
