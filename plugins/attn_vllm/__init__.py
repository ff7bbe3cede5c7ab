"""vLLM plugin: this project's Triton kernels and its reference as attention backends, under names of their own.

`parity_triton` and `parity_reference` hold one backend each, `backend` what they share; `layer` and `metadata` say in the
contract's words what vLLM says of a layer and of a step. Those modules import vLLM; this one does so only when called.
"""

BACKENDS = {
    "PARITY_TRITON": "attn_vllm.parity_triton.ParityTritonBackend",
    "PARITY_REFERENCE": "attn_vllm.parity_reference.ParityReferenceBackend",
}
"""Class paths by the name that `--attention-backend` takes."""


def register() -> None:
    """Make the backends known to vLLM, which calls this in every process, in some more than once."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    for name, class_path in BACKENDS.items():
        if name not in AttentionBackendEnum.__members__:
            register_backend(name, class_path)
