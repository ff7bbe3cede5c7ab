"""Explains a wrong output: which rows, heads and dims are wrong, and which other call gives exactly this output.

A mistake (`attn_fuzz.mistakes`) is the call with one mistake that kernels make: a window that is one key longer, sinks
dropped, the block table of another request. `search` computes each mistake by the reference, and a mistake explains an output
if its results agree with all wrong rows within the judge's bound. `evidence` runs the failing case again with other numbers,
and in richer forms: a case with one key fits ten mistakes. The optimized side is never asked.
"""
