"""Attention over a paged KV cache and over dense tokens: checks, plan, output tensors and launches."""

from collections.abc import Hashable, Iterator
from typing import NamedTuple

import torch
from attn_contract import Batch, ContractError, Layer
from attn_contract.arguments import check_int, check_type
from attn_contract.rules import refuse_unnamed
from attn_contract.signatures import tensor_signature
from attn_contract.validation import check_attention_tensors

from attn_optimized import signature_cache
from attn_optimized.device import architecture_of, compute_units_of
from attn_optimized.kernel_call import KernelCall, Launch
from attn_optimized.launch.attention import attention_launch, attention_tensors
from attn_optimized.launch.call import AttentionCall, DenseKeys, Keys, PagedKeys, new_output
from attn_optimized.launch.parts import Parts, reduce_launch, reduce_tensors
from attn_optimized.launch.plan import AttentionPlan, attention_plan
from attn_optimized.launch.rules import IMPLEMENTED_RULES
from attn_optimized.launch.table import Parameters
from attn_optimized.launch.warp_specialized import warp_specialized_launch
from attn_optimized.launch.workload import Workload, rounded
from attn_optimized.miscompiled import refuse_wrong_values
from attn_optimized.signature_cache import SignatureCache
from attn_optimized.strides import offset_of_scales


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    batch_invariant: bool = False,
    validate: bool = False,
) -> torch.Tensor:
    """Attention of a ragged batch of queries over the KV cache: DECODER (prefill, extend, decode) and ENCODER_DECODER.

    Online softmax over tiles of keys as in FlashAttention-2 (Dao, arXiv 2307.08691), pages looked up key by key as in
    PagedAttention (Kwon et al., arXiv 2309.06180), the keys of few queries split over the device as in Flash-Decoding (Dao et
    al., 2023). Dots and softmax are float32. Weights are rounded to q's dtype before their dot with the values; with a float8 q
    they are rounded to float16, which holds every float8 number.

    Args:
        q: [T, H, D] float32, float16 or bfloat16, or of the cache's float8 type with a `layer.q_scale`; the last dimension is
            dense.
        kv_cache: as `layer.layout` says, of q's dtype or `layer.kv_cache_dtype`. It already holds this step's keys and values:
            see write_kv_cache.
        layer, batch: the parameters of the layer, and those of the step. Sinks of another dtype than float32 cost a conversion
            in every call.
        out: [T, H, Dv] or [T, H * Dv], where Dv is `layer.v_head_size`, written in the rows that a request owns; None: a new
            tensor, whose other rows may hold anything. Its dtype is q's, or float8 with `layer.output_scale`. A float8 q needs
            an `out`, of any of these dtypes.
        lse: [H, T] float32, natural log of the softmax's denominator, sinks included; written in the same rows, unless None.
        batch_invariant: give a request bit by bit the same output for any rest of the batch, and for any division of its
            prefill into steps of whole tiles (`plan_of(...).tiles.queries`). Keys are then never split, and tiles are never
            small, so that few long requests do not fill a GPU.
        validate: check the values in tensors too, which waits for the device.

    Returns:
        out. Queries that see no key give 0, and an LSE of -inf or their sink.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: a head size above 512; in a latent cache V above 512 dims, or K more than 128 dims wider than V; more
            programs than a GPU's grid holds; or a device or Triton that does not run the kernels. Nothing was written.
    """
    return _attend(q, PagedKeys(kv_cache), layer, batch, out, lse, batch_invariant=batch_invariant, validate=validate)


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    batch_invariant: bool = False,
    validate: bool = False,
) -> torch.Tensor:
    """Bidirectional attention of each request over its own tokens, no cache: ENCODER and ENCODER_ONLY.

    The same kernel as `paged_attention`'s.

    Args:
        q: [T, H, D] float32, float16 or bfloat16; the last dimension is dense, as that of k and v.
        k, v: [T_kv, HK, D] and [T_kv, HK, Dv] of q's dtype; request r's keys are the rows `query_start_loc[r]` to
            `query_start_loc[r + 1] - 1`.
        layer, batch: the parameters of the layer, and those of the step; `seq_lens` are the query lengths.
        out: [T, H, Dv] or [T, H * Dv], written in the rows that a request owns; None: a new tensor, whose other rows may hold
            anything. Its dtype is q's, or float8 with `layer.output_scale`.
        lse: [H, T] float32, natural log of the softmax's denominator, sinks included; written in the same rows, unless None.
        batch_invariant: give a request bit by bit the same output for any rest of the batch.
        validate: check the values in tensors too, which waits for the device.

    Returns:
        out.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: as `paged_attention`. Nothing was written.
    """
    return _attend(q, DenseKeys(k, v), layer, batch, out, lse, batch_invariant=batch_invariant, validate=validate)


def _attend(
    q: torch.Tensor,
    keys: Keys,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    *,
    batch_invariant: bool,
    validate: bool,
) -> torch.Tensor:
    """Check a call, find or make its launches, and run them.

    Calls with the same signature share checks and launches, which are made once.
    """
    check_type("batch_invariant", batch_invariant, bool, "a bool")
    check_type("validate", validate, bool, "a bool")
    check_attention_tensors(keys.inputs(q), layer, batch, out, lse)
    signature = _signature(q, keys, layer, batch, out, lse, batch_invariant)
    launches = _LAUNCHES.get(signature)
    if launches is None or validate:
        keys.check(q, layer, batch, out, lse, values=validate)
        refuse_unnamed("attn_optimized", IMPLEMENTED_RULES, layer, batch)
    call = AttentionCall(q, keys, layer, batch, new_output(q, layer) if out is None else out, lse)
    if launches is None:
        launches = attention_launches(plan_of(q, layer, batch, batch_invariant=batch_invariant), call)
        _LAUNCHES[signature] = launches
    for kernel_call in attention_calls(launches, call):
        kernel_call.run(q.device)
    return call.out


def paged_attention_calls(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    plan: AttentionPlan,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
) -> Iterator[KernelCall]:
    """The launches of `paged_attention`, in order. Each is made when it is needed, so that the device can run the first one
    early.

    The tensors may be on meta, with a plan for any GPU: nothing is checked or read.
    """
    call = AttentionCall(q, PagedKeys(kv_cache), layer, batch, out, lse)
    return attention_calls(attention_launches(plan, call), call)


def varlen_attention_calls(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    batch: Batch,
    plan: AttentionPlan,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
) -> Iterator[KernelCall]:
    """The launches of `varlen_attention`: see `paged_attention_calls`."""
    call = AttentionCall(q, DenseKeys(k, v), layer, batch, out, lse)
    return attention_calls(attention_launches(plan, call), call)


def plan_of(
    q: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    batch_invariant: bool = False,
    architecture: str | None = None,
    compute_units: int | None = None,
    parameters: Parameters | None = None,
) -> AttentionPlan:
    """The plan of a call: its tiles, programs and splits. Only shapes and host values are read.

    Args:
        architecture, compute_units: those of the GPU to plan for, which need not be in this machine; None: those of q's device.
        parameters: launch parameters to use instead of those of the architecture's table.

    Raises:
        ContractError: only one of architecture and compute_units is given, or a GPU cannot have such a value.
        UnsupportedError: as `paged_attention` does.
    """
    if architecture is None and compute_units is None:
        architecture, compute_units = architecture_of(q.device, q.dtype), compute_units_of(q.device)
    if architecture is None or compute_units is None:
        name = "architecture" if architecture is None else "compute_units"
        raise ContractError(name, None, "architecture and compute_units of one GPU, or neither")
    check_type("architecture", architecture, str, "such as gfx90a, gfx942, gfx1201 or sm90")
    check_int("compute_units", compute_units, minimum=1)
    if parameters is not None and not isinstance(parameters, Parameters):
        raise ContractError("parameters", repr(parameters), "attn_optimized.launch.table.Parameters")
    workload = Workload.of(q, layer, batch, batch_invariant=batch_invariant)
    return attention_plan(workload, architecture=architecture, compute_units=compute_units, parameters=parameters)


class AttentionLaunches(NamedTuple):
    """A plan that all calls of one signature share, and its launches; none if the plan has no programs."""

    plan: AttentionPlan
    attention: Launch | None
    reduction: Launch | None


# one for all layers of a model and for many steps of a decode
_LAUNCHES: SignatureCache[AttentionLaunches] = SignatureCache()


def attention_launches(plan: AttentionPlan, call: AttentionCall) -> AttentionLaunches:
    """The launches of a plan: the warp specialized kernel if it serves the call; otherwise the attention kernel, and if
    keys are split, the reduction of the parts."""
    if not plan.num_programs:
        return AttentionLaunches(plan, None, None)
    refuse_wrong_values(plan.architecture, call.q.dtype, call.layer)
    if (specialized := warp_specialized_launch(plan, call)) is not None:
        return AttentionLaunches(plan, specialized, None)
    reduction = reduce_launch(plan, call, plan.splits) if plan.splits > 1 else None
    return AttentionLaunches(plan, attention_launch(plan, call), reduction)


def attention_calls(launches: AttentionLaunches, call: AttentionCall) -> Iterator[KernelCall]:
    """The launches with a call's tensors, and with memory for the parts that the first one writes for the second."""
    plan, attention, reduction = launches
    if attention is None:
        return
    parts = None if reduction is None else Parts.empty(plan.splits, call.q, call.layer, call.batch)
    yield KernelCall(attention, attention_tensors(plan, call, parts))
    if reduction is not None and parts is not None:
        yield KernelCall(reduction, reduce_tensors(plan, call, parts))


def part_call(plan: AttentionPlan, call: AttentionCall, parts: Parts, first_part: int) -> KernelCall:
    """Attend to the keys of a call in `plan.splits` parts, from `first_part` on, and write nothing but these parts."""
    return KernelCall(attention_launch(plan, call, first_part), attention_tensors(plan, call, parts))


def reduce_call(plan: AttentionPlan, call: AttentionCall, parts: Parts) -> KernelCall:
    """Reduce all parts to the output and its LSE."""
    return KernelCall(reduce_launch(plan, call, len(parts.acc)), reduce_tensors(plan, call, parts))


def _signature(
    q: torch.Tensor,
    keys: Keys,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    batch_invariant: bool,
) -> Hashable:
    """Everything that checks and launches depend on, except for what `check_attention_tensors` looks at in every call."""
    # the kernels load pairs of dims only from even addresses, and descriptors begin at multiples of 16 bytes
    alignment = (offset_of_scales(keys[0], layer), keys[0].data_ptr() % 16 + q.data_ptr() % 16 * 16)
    tensors = (tensor_signature(q), *map(tensor_signature, keys), tensor_signature(out), tensor_signature(lse))
    return (*tensors, layer.signature, batch.signature, rounded(batch.max_seq_len), batch_invariant, q.device, alignment)


def forget_launches() -> None:
    """Forget the launches and plans that are cached by signature, of all operations. Kernels stay compiled."""
    signature_cache.forget()
    attention_plan.cache_clear()
