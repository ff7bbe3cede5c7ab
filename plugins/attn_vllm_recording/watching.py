"""Wraps vLLM's layers of attention, so that calls of their implementations are judged when they are due.

`Attention` builds an implementation with the arguments of its model. These arguments say what the model asks for. The
implementation may deviate from them: ROCM_ATTN silently ignores a soft cap.
"""

import atexit
import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from attn_contract import AttentionType, ContractError, Layer, UnsupportedError
from attn_fuzz.shadow import Reader, reader_of
from attn_vllm.layer import cache_format, layer_of
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention, MLAAttention
from vllm.model_executor.layers.sparse_attn_indexer import SparseAttnIndexer
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as SecondModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from attn_vllm_recording.backends import Backend, backend_of, batch_of, class_of, name_of
from attn_vllm_recording.blocks import Blocks
from attn_vllm_recording.errors import NotJudgedError
from attn_vllm_recording.excerpt import Excerpt, cache_of, choose
from attn_vllm_recording.index_layers import IndexCall, hold_index_cache
from attn_vllm_recording.process import LOG, ProcessRecording
from attn_vllm_recording.settings import Settings
from attn_vllm_recording.sparse_mla import SparseCall, attends_to_selected

recordings: dict[int, ProcessRecording] = {}
"""The recording of each process id: a forked process inherits that of its parent, and begins one of its own."""

_OFF = {"chunk_lookback": -1}
"""Arguments that models also pass to implementations if they ask for nothing."""


def watch(setting: str) -> None:
    """Watch all layers that this process builds from now on.

    Raises:
        ValueError: see Settings and ProcessRecording.
    """
    if recordings:
        return
    _begin(Settings.of(setting))
    mock.patch.object(Attention, "__init__", _watched_init(Attention.__init__)).start()
    mock.patch.object(MLAAttention, "forward_impl", _counted(MLAAttention.forward_impl)).start()
    mock.patch.object(SparseAttnIndexer, "forward_hip", _watched_index(SparseAttnIndexer.forward_hip)).start()
    for runner in (GPUModelRunner, SecondModelRunner):
        mock.patch.object(runner, "execute_model", _with_steps(runner.execute_model)).start()
    mock.patch.object(SecondModelRunner, "prepare_inputs", _with_rows(SecondModelRunner.prepare_inputs)).start()


def _begin(settings: Settings) -> ProcessRecording:
    recording = recordings[os.getpid()] = ProcessRecording(settings)
    LOG.info("attn-parity records calls of attention in %s", recording.recording.folder)
    atexit.register(_end, recording)
    return recording


def _end(recording: ProcessRecording) -> None:
    if recording.pid != os.getpid():
        return
    recording.save()
    if recording.layers and not recording.recording.judged:
        LOG.warning("attn-parity: no call of attention was judged: see %s", recording.recording.folder)


def current() -> ProcessRecording:
    """The recording of this process."""
    return recordings.get(os.getpid()) or _begin(next(iter(recordings.values())).settings)


def _watched_init(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def watched_init(self: Attention, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        recording = current()
        for impl in self.impl.get_impl_variants():
            recording.layers[name_of(impl)] += 1
            watched = WatchedImpl(impl, given.arguments)
            impl.forward = watched.forward  # pyright: ignore[reportAttributeAccessIssue]  # an attribute hides the method
        recording.save()

    return watched_init


def _with_steps(execute_model: Callable[..., Any]) -> Callable[..., Any]:
    """A step of vLLM's model runner. While it runs, calls of layers know its requests."""

    @functools.wraps(execute_model)
    def with_steps(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        process = current()
        blocks = process.blocks
        if self.vllm_config.kv_transfer_config is not None:
            blocks.shadow.pass_over("keys that a KV connector may have loaded")
        elif not kwargs.get("dummy_run"):
            is_async = bool(self.vllm_config.scheduler_config.async_scheduling)
            _seen(blocks, blocks.begin, scheduler_output, is_async=is_async)
            if hasattr(self, "input_batch"):
                blocks.rows = lambda: self.input_batch.req_ids
        try:
            return execute_model(self, scheduler_output, *args, **kwargs)
        finally:
            blocks.rows = tuple
            process.save_faults()

    return with_steps


def _with_rows(prepare_inputs: Callable[..., Any]) -> Callable[..., Any]:
    """The inputs of a step of vLLM's second model runner, which tell the requests of its rows."""

    @functools.wraps(prepare_inputs)
    def with_rows(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = prepare_inputs(self, *args, **kwargs)
        if self.vllm_config.kv_transfer_config is None:
            current().blocks.rows = lambda: inputs.req_ids
        return inputs

    return with_rows


def _seen(blocks: Blocks, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Report to the shadow. An error is counted as a reason: a recording never ends a server."""
    try:
        function(*arguments, **named)
    except Exception as error:
        blocks.shadow.pass_over(f"{type(error).__name__}: {error}")


def _counted(forward_impl: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(forward_impl)

    @functools.wraps(forward_impl)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        recording = current()
        given = signature.bind(self, *args, **kwargs).arguments
        kv_cache, metadata = given["kv_cache"], given["attn_metadata"]
        if metadata is not None and self.impl.dcp_world_size == 1 and kv_cache.dim() == 3:
            _seen(recording.blocks, recording.blocks.hold, self.layer_name, metadata, kv_cache.shape[1])
        recording.calls[type(self.impl).__qualname__] += 1
        if not _is_turn(recording):
            return forward_impl(self, *args, **kwargs)
        if metadata is not None and attends_to_selected(self.impl):
            return _selected(recording, self.impl, lambda: forward_impl(self, *args, **kwargs))
        recording.recording.pass_over("MLA: its keys and values are one latent vector")
        recording.save()
        return forward_impl(self, *args, **kwargs)

    return counted


def _selected(process: ProcessRecording, impl: Any, run: Callable[[], Any]) -> Any:
    """A step of latent attention to selected tokens."""
    forward_mqa, record, calls = impl.forward_mqa, process.recording, []

    def watched_mqa(q: Any, kv_cache: torch.Tensor, metadata: Any, layer: Any) -> Any:
        rows = len(q[0] if isinstance(q, tuple) else q)
        call = _guarded(process, SparseCall, impl, layer, kv_cache, metadata, rows, record.judged)
        calls.append(call)
        if call is None:
            return forward_mqa(q, kv_cache, metadata, layer)
        with call.watching():
            result = forward_mqa(q, kv_cache, metadata, layer)
        _guarded(process, call.judge, record, result[0])
        return result

    with mock.patch.object(impl, "forward_mqa", watched_mqa):
        result = run()
    if not calls:
        record.pass_over("latent attention to selected tokens whose rows are all expanded: prompts of at most k keys")
    process.save()
    return result


def _watched_index(forward_hip: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward_hip)
    def watched(self: Any, hidden_states: Any, q_quant: Any, k: Any, weights: Any) -> Any:
        arguments, steps = (self, hidden_states, q_quant, k, weights), get_forward_context().attn_metadata
        if not isinstance(steps, dict):  # vLLM measures memory, and nothing is computed
            return forward_hip(*arguments)
        process = current()
        process.calls["SparseAttnIndexer"] += 1
        selected = _index_call(process, steps, forward_hip, arguments)
        _seen(process.blocks, hold_index_cache, process.blocks, self, steps)
        return selected

    return watched


def _index_call(process: ProcessRecording, steps: dict[str, Any], forward_hip: Callable[..., Any], arguments: Any) -> Any:
    if not _is_turn(process):
        return forward_hip(*arguments)
    layer, _, *given = arguments
    name, record = layer.k_cache.prefix, process.recording
    call = _guarded(process, IndexCall, layer, *given, steps[name], record.judged)
    if call is None:
        process.save()
        return forward_hip(*arguments)
    with call.watching():
        selected = forward_hip(*arguments)
    _guarded(process, lambda: record.note(call.wrong(selected), function=f"SparseAttnIndexer {name}"))
    process.save()
    return selected


def _is_turn(process: ProcessRecording) -> bool:
    """Count a call. True if it is to be judged."""
    is_due = process.recording.is_due()
    if is_captured := torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        process.recording.pass_over("it was captured in a CUDA graph, and replays of a graph are not seen")
    return is_due and not is_captured


class WatchedImpl:
    """An implementation of attention whose calls are recorded.

    Args:
        impl: the implementation of one layer.
        given: the arguments of the layer's `Attention`.
    """

    def __init__(self, impl: Any, given: dict[str, Any]) -> None:
        self.impl, self.given = impl, given
        self.name, self.backend = name_of(impl), backend_of(impl)
        self.original = impl.forward

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the implementation. The arguments are copied before the implementation may write them."""
        arguments = (layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if attn_metadata is None:  # vLLM measures memory, and nothing is computed
            return self.original(*arguments)
        process = current()
        process.calls[self.name] += 1
        writes = layer.attn_backend.forward_includes_kv_cache_update
        if not writes:
            self._hold(process.blocks, layer, query, kv_cache, attn_metadata)
        result = self._recorded(process, arguments)
        if writes:
            self._hold(process.blocks, layer, query, kv_cache, attn_metadata)
        return result

    def _recorded(self, process: ProcessRecording, arguments: tuple[Any, ...]) -> torch.Tensor:
        if not _is_turn(process):
            return self.original(*arguments)
        before = _guarded(process, self._before, arguments)
        try:
            result = self.original(*arguments)
            if before is not None:
                _guarded(process, self._judge, process, before, arguments)
        except BaseException as error:
            if before is not None:
                process.recording.pass_over(f"the call raised {type(error).__name__}")
            raise
        finally:
            process.save()
        return result

    def _hold(self, blocks: Blocks, layer: Any, query: torch.Tensor, kv_cache: torch.Tensor, metadata: Any) -> None:
        """Check the keys that attention gets by the shadow, after the step's keys are written."""
        if self.given["attn_type"] == AttentionType.DECODER and self.impl.total_cp_world_size == 1 and kv_cache.dim() == 4:
            name = layer.kv_sharing_target_layer_name or layer.layer_name
            reader = functools.partial(self._reader, blocks, layer, query, kv_cache)
            _seen(blocks, blocks.hold, name, metadata, kv_cache.shape[2], window=layer.sliding_window, reader=reader)

    def _reader(self, blocks: Blocks, layer: Any, query: torch.Tensor, kv_cache: torch.Tensor) -> Reader | None:
        """A reader of stored numbers, without the scale of a tensor, which may change later. None if they cannot be read."""
        try:
            if self.backend is None:
                raise NotJudgedError(f"{self.name} is no backend that the recording knows")
            asked = self._layer(layer, query, None, self.backend)
            ones = {name: torch.ones(1) for name in ("k_scale", "v_scale") if name in asked.tensors}
            return reader_of(cache_of(kv_cache, asked), dataclasses.replace(asked, **ones))
        except (NotJudgedError, ContractError, UnsupportedError) as reason:
            blocks.shadow.pass_over(f"the bytes in the slots: {reason}")
            return None

    def _before(self, arguments: tuple[Any, ...]) -> "_Before":
        layer, query, key, value, kv_cache, metadata, _, output_scale, output_block_scale = arguments
        backend = self.backend
        if backend is None:
            raise NotJudgedError(f"{class_of(self.impl).__qualname__} is no backend that the recording knows")
        _refuse(self.impl, query, output_block_scale, backend)
        contract_layer = self._layer(layer, query, output_scale, backend)
        batch = batch_of(backend, metadata, contract_layer)
        reads_new = key is not None and not backend.quantizes_new_tokens
        choice = choose(
            batch,
            contract_layer,
            current().recording.judged,
            decodes_only=reads_new and contract_layer.kv_cache_dtype is not None,
        )
        excerpt = Excerpt(contract_layer, batch, choice, query, key, value)
        rounding = backend.rounding(metadata, excerpt.max_seq_len)
        # vLLM's cross-attention writes the encoder's keys inside the call
        call = None if layer.attn_backend.forward_includes_kv_cache_update else excerpt.call(kv_cache)
        return _Before(excerpt, call, rounding)

    def _judge(self, process: ProcessRecording, before: "_Before", arguments: tuple[Any, ...]) -> None:
        layer, kv_cache, output = arguments[0], arguments[4], arguments[6]
        record = process.recording
        call = before.call or before.excerpt.call(kv_cache)
        wrong = record.wrong
        function = f"{self.name} {layer.layer_name}"
        record.judge(call, before.excerpt.output(output), function=function, rounding=before.rounding)
        if record.wrong > wrong:
            LOG.error("attn-parity: call %d of %s is wrong: see %s", record.calls - 1, function, record.folder)

    def _layer(self, layer: Any, query: torch.Tensor, output_scale: torch.Tensor | None, backend: Backend) -> Layer:
        """The layer that the model asked for, with tensors on the CPU. Scales are the present ones."""
        given = self.given["extra_impl_args"]
        extra = {name: value for name, value in given.items() if name not in _OFF or value != _OFF[name]}
        if layer.use_alibi_sqrt:
            extra["use_alibi_sqrt"] = True
        if layer.head_size_v != layer.head_size:
            raise NotJudgedError("V of another width than K")
        if extra.get("sinks") is not None:
            extra["sinks"] = extra["sinks"].detach().cpu()
        asked = layer_of(
            num_heads=layer.num_heads,
            head_size=layer.head_size,
            scale=self.given["scale"],
            num_kv_heads=layer.num_kv_heads,
            alibi_slopes=self.given["alibi_slopes"],
            sliding_window=layer.sliding_window,
            kv_cache_dtype=layer.kv_cache_dtype,
            logits_soft_cap=self.given["logits_soft_cap"],
            attn_type=layer.attn_type,
            **extra,
        )
        changes: dict[str, Any] = {}
        if asked.layout is not None:
            stored = cache_format(layer.kv_cache_dtype)
            changes = {"kv_cache_dtype": stored.quantized, "layout": backend.pages(self.impl) or asked.layout}
            if stored.scales == "tensor":
                changes |= {"k_scale": layer._k_scale.detach().cpu(), "v_scale": layer._v_scale.detach().cpu()}
        if query.element_size() == 1:
            changes["q_scale"] = layer._q_scale.detach().cpu()
        if output_scale is not None:
            changes["output_scale"] = output_scale.detach().cpu()
        if asked.attn_type is AttentionType.DECODER and layer.mm_prefix_clamp_sliding_window:
            changes["ranges_clamped"] = True
        return dataclasses.replace(asked, **changes) if changes else asked


@dataclasses.dataclass(frozen=True)
class _Before:
    """Copies made before the call; `call` is None if the cache is written inside the call."""

    excerpt: Excerpt
    call: Any
    rounding: Any


def _refuse(impl: Any, query: torch.Tensor, output_block_scale: torch.Tensor | None, backend: Backend) -> None:
    """Refuse a call for reasons that its metadata does not show.

    Raises:
        NotJudgedError: with the reason.
    """
    if output_block_scale is not None:
        raise NotJudgedError("an output in blocks with scales of their own")
    if impl.total_cp_world_size > 1:
        raise NotJudgedError("context parallelism: a process sees a part of the keys")
    if query.dtype == torch.float32 and query.is_cuda and not backend.is_ours:
        raise NotJudgedError("float32 on a GPU: its products may be TF32, which no bound describes")


def _guarded(process: ProcessRecording, function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result; None after an error, which is counted. A recording never ends a server."""
    try:
        with torch.no_grad(), torch.device("cpu"):
            return function(*arguments)
    except (NotJudgedError, ContractError, UnsupportedError) as reason:
        process.recording.pass_over(str(reason))
    except Exception as error:
        process.recording.pass_over(f"{type(error).__name__}: {error}")
    return None
