"""merge_state_triton: two parts without a key merge to NaN. They should merge to 0, with an LSE of -inf.

One token, one head. Both parts have an output of 0 and an LSE of -inf.
"""

import torch
from kernels import DEVICE, compare, load

outputs = torch.zeros(2, 1, 1, 32, device=DEVICE)
lses = torch.full((2, 1, 1), -torch.inf, device=DEVICE)
got, lse = load("sglang.kernels.ops.attention.merge_state").merge_state_triton(outputs[0], lses[0], outputs[1], lses[1])
compare([0.0, -torch.inf], torch.stack([got[0, 0, 0], lse[0, 0]]))
