"""vLLM plugin: this project's Triton kernels and its reference as attention backends, under names of their own.

`parity_triton` and `parity_reference` hold one backend each, and `backend` holds what they share. `mla` holds the backend of
latent attention. `layer` and `metadata` translate vLLM's arguments of a layer and of a step into the contract's Layer and
Batch. All six modules import vLLM when they are imported; this one imports vLLM only when `register` is called.
"""

BACKENDS = {
    "PARITY_TRITON": "attn_vllm.parity_triton.ParityTritonBackend",
    "PARITY_REFERENCE": "attn_vllm.parity_reference.ParityReferenceBackend",
}
"""Paths of the backends' classes, by the names that vLLM's `--attention-backend` takes."""
MLA_BACKENDS = {"PARITY_TRITON_MLA": "attn_vllm.mla.ParityTritonMlaBackend"}
"""The same for the backends of latent attention."""
MLA_PREFILL_BACKENDS = {"PARITY_TRITON": "attn_vllm.mla.ParityTritonMlaPrefill"}
"""The backends of latent attention's prefills, by the names that `mla_prefill_backend` of vLLM's `--attention-config` takes."""


def register() -> None:
    """Make the backends known to vLLM. vLLM calls this in every process, and in some processes more than once."""
    from vllm.v1.attention.backends.mla.prefill.registry import MLAPrefillBackendEnum, register_mla_prefill_backend
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    for name, class_path in {**BACKENDS, **MLA_BACKENDS}.items():
        if name not in AttentionBackendEnum.__members__:
            register_backend(name, class_path)
    for name, class_path in MLA_PREFILL_BACKENDS.items():
        if name not in MLAPrefillBackendEnum.__members__:
            register_mla_prefill_backend(name, class_path)
