"""Matrix instructions: D = A B + C for one wave.

layouts.py says which element of a matrix each lane holds, elements.py how the bits of an element are read, and product.py
multiplies. mfma.py (gfx9) and wmma.py (gfx11 and later) name the instructions.

The order in which hardware adds the products of one instruction, and its rounding between them, are not published. Here
products and sums are float32 (float64 where D is, and where operands have scales), and C is added last. A product of two
elements of 16 or fewer bits is exact in float32. Results of hardware and of this package agree up to the rounding of float32
sums.
"""

from attn_amdgcn.instructions.matrix import mfma, wmma

__all__ = ["mfma", "wmma"]
