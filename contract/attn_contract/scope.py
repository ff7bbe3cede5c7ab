"""Features that this project does not have, by the names of engines' arguments and of fields and values of model configs.

Each is refused with a reason.
"""

from collections.abc import Iterable

from attn_contract.errors import UnsupportedError
from attn_contract.layouts import A_LATENT_LAYOUT

_STATE = "its layers keep a state instead of keys and values, and have no softmax"
_RELATIVE = ("relative position embeddings", "a logit has a product with an embedding of the distance, which no rule computes")
_INDEXER = (
    "an indexer",
    "attn_contract.Indexer has its terms, and a layer with a selection_unit attends to keys that were selected",
)
_COMPRESSED = (
    "compressed keys",
    "no backend here is one of vLLM's for them; a layer with a key_unit attends to them, another one to the tokens of the "
    "window, and merge_attn_states makes one softmax of both",
)
_RANKS = "a layer is one rank's, and attn_optimized.context_parallel attends over ranks"

OUT_OF_SCOPE = {
    "kv_lora_rank": (
        "MLA",
        f"its layers are given by head_size, head_size_v and layout {A_LATENT_LAYOUT}",
    ),
    "rswa_window": ("R-SWA", "its window is counted from a prefix of each request, which the visibility rule has no term for"),
    "relative_attention_num_buckets": (
        "relative position bias",
        "a logit has a learned number for each distance, and alibi_slopes has one slope for each head",
    ),
    "relative_key": _RELATIVE,
    "relative_key_query": _RELATIVE,
    "v_head_dim": (
        "V of another width than K",
        "it is given by head_size_v, which a cache has in layout CONTENT_PACKED or a latent layout",
    ),
    "index_topk": _INDEXER,
    "compress_rates": _COMPRESSED,
    "compress_ratios": _COMPRESSED,
    "index_kpool": (
        "an indexer of pools",
        "the tokens of the open pool are seen beside index_topk selected ones, and vLLM's backends on ROCm take index_topk",
    ),
    "indexer_budget": (
        "an indexer of groups of tokens (QSA)",
        "no backend here is one of vLLM's for them; a layer with a selection_unit of as many tokens says what they attend to",
    ),
    "region_block_size": (
        "an indexer of regions",
        "vLLM has its backend on NVIDIA's GPUs alone; a layer with a selection_unit of as many tokens says what they attend to",
    ),
    "linear_attention": ("linear attention", _STATE),
    "state_size": ("state-space layers", _STATE),
    "mamba_d_state": ("state-space layers", _STATE),
    "use_alibi_sqrt": ("ALiBi-sqrt", "alibi_slopes weight the distance itself, not its square root"),
    "chunk_lookback": ("chunk look-back", "chunked_local hides every earlier chunk"),
    "dropout_p": ("dropout", "attention here is inference and deterministic"),
    "dcp_world_size": ("decode context parallelism (DCP)", _RANKS),
    "pcp_world_size": ("prefill context parallelism (PCP)", _RANKS),
}
"""Feature and reason, by the name of the argument, or of a config's field or value, that asks for the feature."""


def refuse_out_of_scope(settings: Iterable[str]) -> None:
    """Refuse settings that are out of scope, whatever their values.

    Args:
        settings: their names.

    Raises:
        UnsupportedError: naming each feature, and the argument that asks for it.
    """
    asked = [(f"{OUT_OF_SCOPE[name][0]} ({name})", OUT_OF_SCOPE[name][1]) for name in settings if name in OUT_OF_SCOPE]
    if asked:
        (feature, reason), *others = asked
        also = (f"{other} not supported: {why}" for other, why in others)
        raise UnsupportedError("attn_contract", feature, "; ".join((reason, *also)))
