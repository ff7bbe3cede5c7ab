"""Multi-head latent attention (MLA; DeepSeek-V2, arXiv:2405.04434, section 2.1): one attention in two forms.

A layer keeps one latent vector c_j [Lkv] and one rotated key r_j [R] per token, for all its N heads. Head n has the key
and the value

    k_jn = cat(W_UK_n c_j, r_j)        v_jn = W_UV_n c_j                      (the paper's equations 10, 11 and 17)

and its query is cat(p_in, r'_in), a part without rotation and a rotated one. So its logit and its output are

    s_j = scale * (p_in . W_UK_n c_j + r'_in . r_j)        o_in = sum_j P_j W_UV_n c_j

**Expanded** (a prefill): k and v are computed for every head. This is plain attention with N KV heads, where k is P + R wide
and v is V wide.

**Absorbed** (a decode): both matrices change places with the sums, because a product of matrices is associative:

    p . (W_UK c) = (W_UK^T p) . c        sum_j P_j (W_UV c_j) = W_UV (sum_j P_j c_j)

So all heads share one key cat(c_j, r_j), whose first Lkv elements are the value: Layout.LATENT. The query is
cat(W_UK^T p, r'), and W_UV is applied to the output.

The scale of both forms is that of the expanded one, `(P + R) ** -0.5` (times the square of YaRN's factor if the model has one):
the absorbed form has the same logits, whatever the width of its keys.

Shapes: q_nope [T, N, P], q_pe [T, N, R], kv_c [T_kv, Lkv], k_pe [T_kv, R], w_uk [Lkv, N, P], w_uv [Lkv, N, V]. All tensors are
of one dtype, and r and r' are rotated already. Products are summed in float64, and each result is rounded once.
"""

from typing import NamedTuple

import torch

from attn_reference.arithmetic import joined, sum_of_products


class QueryKeyValue(NamedTuple):
    """The arguments of plain attention: query [T, N, D], key [T_kv, HK, D], value [T_kv, HK, Dv]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def expanded(
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    kv_c: torch.Tensor,
    k_pe: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
) -> QueryKeyValue:
    """MLA as attention with N KV heads, D = P + R and Dv = V. Its output [T, N, V] is MLA's."""
    k_nope = sum_of_products("kl,lnp->knp", kv_c, w_uk)
    every_head = k_pe[:, None].expand(-1, w_uk.shape[1], -1)
    value = sum_of_products("kl,lnv->knv", kv_c, w_uv)
    return QueryKeyValue(joined(q_nope, q_pe), joined(k_nope, every_head), value)


def absorbed(
    q_nope: torch.Tensor, q_pe: torch.Tensor, kv_c: torch.Tensor, k_pe: torch.Tensor, w_uk: torch.Tensor
) -> QueryKeyValue:
    """MLA as attention with one KV head, D = Lkv + R and Dv = Lkv. `up_projected` of its output [T, N, Lkv] is MLA's."""
    latent_query = sum_of_products("tnp,lnp->tnl", q_nope, w_uk)
    key = joined(kv_c, k_pe)[:, None]
    return QueryKeyValue(joined(latent_query, q_pe), key, kv_c[:, None])


def up_projected(out: torch.Tensor, w_uv: torch.Tensor) -> torch.Tensor:
    """[T, N, V]: the output of the absorbed form [T, N, Lkv], times W_UV of each head."""
    return sum_of_products("tnl,lnv->tnv", out, w_uv)
