"""What this project does not do, by the names of engines' arguments. Each such argument is refused with a reason."""

from collections.abc import Mapping

from attn_contract.errors import UnsupportedError

OUT_OF_SCOPE = {
    "kv_lora_rank": ("MLA", "its keys and values are one latent vector, which no layout here holds"),
    "rswa_window": ("R-SWA", "its window is counted from a prefix of each request, which the visibility rule has no term for"),
    "use_alibi_sqrt": ("ALiBi-sqrt", "alibi_slopes weight the distance itself, not its square root"),
    "chunk_lookback": ("chunk look-back", "chunked_local hides every earlier chunk"),
    "dropout_p": ("dropout", "attention here is inference and deterministic"),
    "dcp_world_size": ("decode context parallelism (DCP)", "merge_attn_states merges what devices saw, but a call sees one"),
    "pcp_world_size": (
        "prefill context parallelism (PCP)",
        "merge_attn_states merges what devices saw, but a call sees one",
    ),
}
"""Feature and reason, by the name of the argument that asks for the feature."""


def refuse_out_of_scope(settings: Mapping[str, object]) -> None:
    """Refuse the first setting that is out of scope, whatever its value.

    Raises:
        UnsupportedError: naming the feature and the argument that asks for it.
    """
    for name in settings:
        if name in OUT_OF_SCOPE:
            feature, reason = OUT_OF_SCOPE[name]
            raise UnsupportedError("attn_contract", f"{feature} ({name})", reason)
