"""vLLM's Triton attention over chosen latent rows on ROCm (v1/attention/ops/rocm_aiter_mla_sparse.py).

v1/attention/backends/mla/rocm_aiter_mla_sparse.py:890-980 takes it for bfloat16 without a rotation, and for float16 or many
heads with sinks: a decode in parts, whose number follows from sizes, or else a prefill. Slots are given one row after the
other; -1 may stand anywhere (:230-244). A row of padding has none, and its output is 0.
"""

from types import SimpleNamespace

from attn_fuzz import foreign
from attn_fuzz.findings.vllm import SPARSE_MLA
from attn_fuzz.foreign.loading import Stubs, nothing
from attn_fuzz.targets.packages import VLLM
from attn_fuzz.targets.packages.declaring import Sources
from attn_fuzz.targets.packages.latent_rows import ragged, selection_target
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.targets.support import LatentSizes
from attn_fuzz.verdict.rounding import Rounding

SPLITS = (1, 2, 3, 8)


def stubs() -> Stubs:
    common = vllm_package.stubs(is_rocm=True)
    common["vllm.platforms.rocm"] |= {"_ON_GFX942": True, "_ON_GFX950": False}
    return {
        **common,
        "vllm.compilation.breakable_cudagraph": {"eager_break_during_capture": lambda function: function},
        "vllm.config": {"CUDAGraphMode": None, "get_current_vllm_config": None},
        "vllm.forward_context": {"get_forward_context": None},
        "vllm.utils.torch_utils": {"LayerNameType": str, "direct_register_custom_op": nothing},
        "vllm.v1.attention.backends.mla.indexer": {"DeepseekV32IndexerMetadata": SimpleNamespace},
        "vllm.v1.attention.ops.common": {"pack_seq_triton": None, "unpack_seq_triton": None},
    }


SOURCES = Sources(VLLM, ("rocm_aiter_mla_sparse",), stubs, (vllm_package.OPS,))


def _attend(q, slots, kv_cache, layer, out, rng) -> None:
    indices, indptr = ragged(slots, rng)
    splits = rng.choice(SPLITS)
    [module] = SOURCES.load()
    call = {
        "q": q,
        "kv": kv_cache.flatten(0, 1).unsqueeze(1),
        "scale": layer.scale,
        "head_dim": layer.head_size,
        "nope_head_dim": layer.v_head_size,
        "rope_head_dim": layer.head_size - layer.v_head_size,
        "attn_sink": layer.sinks,
        "output": out,
        "ragged_indices": indices,
        "ragged_indptr": indptr,
    }
    with foreign.as_on_a_gpu():
        if splits > 1:
            module.rocm_sparse_attn_decode_bf16(**call, num_splits=splits)
        else:
            module.rocm_sparse_attn_prefill(**call, indices=None, topk_length=None)


VLLM_SPARSE_MLA = selection_target(
    _attend,
    name="vllm-sparse-mla",
    description="rocm_sparse_attn_prefill and rocm_sparse_attn_decode_bf16 of vLLM",
    support={
        "rules": ("sinks",),
        "latent": LatentSizes(widths=((128, 0), (512, 0), (128, 32)), group_sizes=(16, 12, 128), block_sizes=(16, 1, 64)),
    },
    rounding=Rounding(keys_per_tile=16, splits=max(SPLITS)),
    **SOURCES.fields(),
    findings=SPARSE_MLA,
)
