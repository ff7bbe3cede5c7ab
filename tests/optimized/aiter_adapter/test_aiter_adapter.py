"""Which AITER is there and what it declares; every call is by keyword, converted to AITER's conventions or refused."""

import dataclasses
import shutil
import sys
from dataclasses import replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from attn_contract import AttentionType, ContractError, Layout, UnsupportedError
from attn_contract.arguments import named
from attn_fuzz.targets.packages.aiter.unified import AITER_UNIFIED_ATTENTION
from attn_optimized import aiter_adapter
from attn_optimized.aiter_adapter import Aiter, Signature, features_of, find_aiter, import_aiter, native_float8, recorded
from attn_optimized.aiter_adapter.key_values import key_value_rows

from tests.optimized.aiter_adapter.documented_aiter import Call, stand_in
from tests.support.agreement import assert_within_bound
from tests.support.calls import HEAD_SCALES, ONE_SCALE, PagedCall, with_idle_strides


@pytest.fixture
def device() -> torch.device:
    """AITER's functions are stood in for by the reference, which needs no GPU."""
    return torch.device("cpu")


@pytest.fixture
def calls() -> list[Call]:
    return []


@pytest.fixture
def aiter(calls: list[Call]) -> Aiter:
    return stand_in(calls)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a package named aiter where Python looks first; its files by name."""
    for name in [name for name in sys.modules if name.split(".")[0] == "aiter"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    release = tmp_path / "amd_aiter-9.9.dist-info"
    release.mkdir()
    (release / "METADATA").write_text("Metadata-Version: 2.1\nName: amd-aiter\nVersion: 9.9\n")

    def files(**sources: str) -> Path:
        for name, source in {"__init__": "", **sources}.items():
            path = tmp_path.joinpath("aiter", *name.split("__in__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path / "aiter"

    yield files
    for name in [name for name in sys.modules if name.split(".")[0] == "aiter"]:
        del sys.modules[name]


class TestFinding:
    def test_no_installation_is_named(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert "not installed" in str(find_aiter().missing)

    def test_the_unrelated_package_of_pypi(self, install):
        install(builtins="")
        assert "not AMD's" in str(find_aiter().missing)

    def test_the_folder_of_a_clone(self, tmp_path, monkeypatch):
        """Which Python takes for a namespace where no package of that name is installed."""
        spec = ModuleSpec("aiter", None)
        spec.submodule_search_locations = [str(tmp_path)]
        monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
        missing = str(find_aiter().missing)
        assert "is no package" in missing
        assert "PyPI" not in missing

    def test_an_installation_without_attention_is_named(self, install):
        install(ops__in__enum="")
        assert "without attention" in str(find_aiter().missing)

    def test_it_is_read_and_not_run(self, install):
        install(
            __init__="raise AssertionError('no hipcc')",
            ops__in__mha="f()\ndef flash_attn_varlen_func(q, k, *, window_size=(-1, -1), out=None, how=f()): ...",
        )
        found = find_aiter()
        assert (found.missing, found.version) == (None, "9.9")
        signature = found.signatures["flash_attn_varlen_func"]
        assert signature.arguments == ("q", "k", "window_size", "out", "how")
        assert signature.defaults["window_size"] == (-1, -1)
        assert str(signature) == "aiter.ops.mha.flash_attn_varlen_func(q, k, window_size=(-1, -1), out=None, how=...)"
        assert not [name for name in sys.modules if name.split(".")[0] == "aiter"]

    def test_a_checkout_has_not_the_version_of_the_release_before_it(self, install, tmp_path, monkeypatch):
        release = install(ops__in__mha="def flash_attn_varlen_func(q): ...")
        checkout = shutil.copytree(release, tmp_path / "checkout" / "aiter")
        monkeypatch.syspath_prepend(checkout.parent)
        assert (find_aiter().location, find_aiter().version) == (checkout, None)
        assert str(find_aiter()) == f"AITER at {checkout}"

    @pytest.mark.parametrize("folder", ["ops__in__triton", "ops__in__triton__in__attention"])
    def test_module_paths_old_and_new(self, folder, install):
        install(**{f"{folder}__in__unified_attention": "def unified_attention(q, sinks=None): ..."})
        assert find_aiter().signatures["unified_attention"].module == f"aiter.{folder.replace('__in__', '.')}.unified_attention"

    @pytest.mark.parametrize(
        ("lines", "traits"),
        [
            ("TILE_SIZE = block_size", set()),
            ("TILE_SIZE = min(64, triton.next_power_of_2(block_size))", {"rounded tiles"}),
            (
                "TILE_SIZE = min(64, triton.next_power_of_2(block_size))\n    assert TILE_SIZE % block_size == 0",
                {"rounded tiles", "tiles of whole blocks"},
            ),
            ("assert kv_cache_dtype in (torch.bfloat16, e4m3_dtype)", {"the device's own float8"}),
        ],
    )
    def test_traits_of_unified_attention_are_read_from_its_source(self, lines, traits, install):
        install(ops__in__triton__in__unified_attention=f"def unified_attention(block_size):\n    {lines}\n")
        assert find_aiter().unified_traits == traits

    @pytest.mark.parametrize("architectures", ['("gfx950")', '("gfx950", "gfx1250", "gfx1201")'])
    def test_architectures_whose_own_float8_is_e4m3fn_are_read(self, architectures, install):
        source = f"e4m3_dtype = torch.float8_e4m3fn if arch_info.get_arch() in {architectures} else torch.float8_e4m3fnuz\n"
        install(ops__in__mha="def flash_attn_varlen_func(q): ...", ops__in__triton__in__utils__in__types=source)
        own = {name: native_float8(find_aiter(), name) for name in ("gfx942", "gfx950", "gfx1201", "gfx1100")}
        fn = {name for name, dtype in own.items() if dtype == torch.float8_e4m3fn}
        assert fn == {name for name in own if name in architectures}

    def test_source_that_cannot_be_parsed_has_no_signature(self, install):
        install(ops__in__mha="def flash_attn_varlen_func(:", ops__in__attention="def pa_fwd_asm(Q): ...")
        assert list(find_aiter().signatures) == ["pa_fwd_asm"]

    def test_an_import_that_fails_is_named(self, install):
        install(__init__="raise AssertionError('no hipcc')", ops__in__mha="def flash_attn_varlen_func(q): ...")
        assert import_aiter().missing == "AITER does not import here: AssertionError: no hipcc"
        with pytest.raises(UnsupportedError, match="AssertionError: no hipcc"):
            find_aiter().call("flash_attn_varlen_func", q=1)

    def test_imported_functions_are_inspected(self, install):
        """A decorator hides the arguments from the source's reader, and `functools.wraps` shows them to `inspect`."""
        install(
            ops__in__mha="import functools\ndef hidden(q, sink_ptr=None): ...\n"
            "@functools.wraps(hidden)\ndef flash_attn_varlen_func(*args, **kwargs): return kwargs"
        )
        assert not find_aiter().has("flash_attn_varlen_func", "sink_ptr")
        found = import_aiter()
        assert found.has("flash_attn_varlen_func", "sink_ptr")
        assert found.call("flash_attn_varlen_func", q=3) == {"q": 3}


class TestFeatures:
    def test_the_recorded_version_has_all(self):
        assert not any(features_of(recorded("2026-08")).values())

    def test_an_argument_that_a_signature_lacks_is_named_for_its_feature_alone(self):
        whole = recorded("2026-08")
        prefill = whole.signatures["flash_attn_varlen_func"]
        fewer = replace(prefill, arguments=tuple(name for name in prefill.arguments if name != "sink_ptr"))
        reasons = features_of(replace(whole, signatures={**whole.signatures, "flash_attn_varlen_func": fewer}))
        assert [name for name, reason in reasons.items() if reason] == ["prefill_sinks"]
        assert "`sink_ptr`" in reasons["prefill_sinks"]

    def test_without_aiter_every_feature_has_its_reason(self):
        assert set(features_of(Aiter(missing="not there")).values()) == {"not there"}

    def test_an_unknown_version_is_an_error(self):
        with pytest.raises(ValueError, match=r"AITER: got version '1999-01', expected one of .*2026-08"):
            recorded("1999-01")


class TestArguments:
    def test_one_that_the_signature_lacks(self):
        aiter = Aiter(version="0", signatures={"f": Signature("f", "aiter.f", ("q",))}, functions={"f": print})
        with pytest.raises(UnsupportedError, match="AITER's f: sinks not supported: no such argument in AITER 0; use an AITER"):
            aiter.call("f", q=1, sinks=2)

    def test_one_that_the_signature_wants_and_nobody_knows(self):
        aiter = Aiter(signatures={"f": Signature("f", "aiter.f", ("q", "more", "less"), {"less": 0})}, functions={"f": print})
        with pytest.raises(UnsupportedError, match="AITER's f: more not supported"):
            aiter.call("f", q=1)

    def test_a_function_that_is_not_there(self):
        with pytest.raises(UnsupportedError, match="has no such function"):
            Aiter(version="0").call("unified_attention")


def assert_agrees(call: PagedCall, out: torch.Tensor, lse: torch.Tensor | None = None) -> None:
    """By the judge's bound, with the roundings that the fuzzer allows AITER's kernel."""
    assert_within_bound(call, out, lse, rounding=AITER_UNIFIED_ATTENTION.rounding("cpu"))


class TestUnifiedAttention:
    def attend(self, aiter, call):
        out = torch.full(call.q.shape, torch.nan, dtype=call.q.dtype)
        assert aiter_adapter.unified_attention(aiter, *call, out=out, validate=True) is out
        return out

    def test_the_kernel_takes_the_row_stride_of_qq_bias_for_its_width(self, paged_call, aiter, calls):
        wide = torch.full((11, 16), torch.nan)
        wide[:, :11] = torch.arange(121.0).view(11, 11) / 16
        call = paged_call([3, 4], [20, 6], dtype=torch.float16, qq_bias=wide[:, :11])
        assert_agrees(call, self.attend(aiter, call))
        assert calls[-1].arguments["qq_bias"].stride() == (11, 1)

    @pytest.mark.parametrize("stride", [0, 16])
    def test_the_stride_of_a_qq_bias_of_one_query_is_not_its_width(self, stride, paged_call, aiter, calls):
        bias = torch.full((1, 16), 0.5).as_strided((1, 1), (stride, 1))
        call = paged_call([1], [20], dtype=torch.float16)
        batch = replace(call.batch, max_query_len=1, num_actual_tokens=1, qq_bias=bias)
        self.attend(aiter, call._replace(q=call.q[:1], batch=batch))
        assert calls[-1].arguments["qq_bias"].stride() == (1, 1)

    def test_the_rest_of_a_tile_of_the_block_table_can_be_read(self, paged_call, aiter, calls):
        call = paged_call([18, 3], [20, 33], dtype=torch.float16)
        table = call.batch.block_table.clone()
        self.attend(aiter, call._replace(batch=replace(call.batch, block_table=table)))
        given = calls[-1].arguments["block_table"]
        from_last_row = given.untyped_storage().nbytes() // 4 - (len(given) - 1) * given.stride(0)
        assert from_last_row >= table.shape[1] + 64 // 16 - 1
        assert torch.equal(given[:, : table.shape[1]], table)
        keyless = replace(call.batch, block_table=table[:, :0], seq_lens=torch.zeros_like(call.batch.seq_lens), max_seq_len=0)
        aiter_adapter.unified_attention(aiter, *call._replace(batch=keyless), out=torch.empty_like(call.q))
        assert calls[-1].arguments["block_table"].untyped_storage().nbytes() // 4 >= 2 * (64 // 16)
        roomy = torch.nn.functional.pad(table, (0, 8))[:, : table.shape[1]]
        self.attend(aiter, call._replace(batch=replace(call.batch, block_table=roomy)))
        assert calls[-1].arguments["block_table"].data_ptr() == roomy.data_ptr()

    @pytest.mark.parametrize("block_size", [80, 528])
    def test_blocks_need_not_be_powers_of_two(self, block_size, paged_call, aiter):
        """Tiles do not begin where blocks do: the last one of 160 keys ends in a third block of 80."""
        call = paged_call([18, 3, 1], [80, 33, 2 * block_size], dtype=torch.float16, block_size=block_size)
        table = call.batch.block_table[:, :2].contiguous()
        assert_agrees(call, self.attend(aiter, call._replace(batch=replace(call.batch, block_table=table))))

    @pytest.mark.parametrize("tiles", [{"rounded tiles"}, {}], ids=["rounded", "blocks"])
    def test_blocks_of_48_are_served_where_tiles_are_rounded_alone(self, tiles, paged_call, aiter):
        aiter = replace(aiter, unified_traits=frozenset(tiles))
        call = paged_call([18, 3], [96, 33], dtype=torch.float16, block_size=48)
        if tiles:
            assert_agrees(call, self.attend(aiter, call))
        else:
            with pytest.raises(UnsupportedError, match=r"block size 48 .* power of two .*#2393"):
                self.attend(aiter, call)

    @pytest.mark.parametrize("cache_dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
    @pytest.mark.parametrize("asserts", [False, True])
    @pytest.mark.parametrize("architecture", ["gfx942", "gfx950", "gfx1100", "gfx1201"])
    def test_a_float8_cache_is_of_the_type_that_the_aiter_asserts(
        self, architecture, asserts, cache_dtype, paged_call, aiter, calls, monkeypatch
    ):
        """Which type that is depends on the architecture. An AITER that does not assert takes both."""
        module = sys.modules["attn_optimized.aiter_adapter.unified_attention"]
        monkeypatch.setattr(module, "architecture_of", lambda *of: architecture)
        traits = aiter.unified_traits if asserts else aiter.unified_traits - {"the device's own float8"}
        call = paged_call([2, 1], [20, 33], dtype=torch.float16, kv_cache_dtype=cache_dtype, **ONE_SCALE)
        is_own = (cache_dtype == torch.float8_e4m3fn) == (architecture in ("gfx950", "gfx1201"))
        out = torch.full(call.q.shape, 7.0, dtype=call.q.dtype)
        attend = partial(aiter_adapter.unified_attention, replace(aiter, unified_traits=traits), *call, out=out)
        if is_own or not asserts:
            attend()
            assert calls[-1].arguments["k"].dtype == cache_dtype
            return
        with pytest.raises(
            UnsupportedError, match=f"^AITER's unified_attention: a cache of {named(cache_dtype)} on {architecture}"
        ):
            attend()
        assert calls == []
        assert (out == 7).all()

    def test_only_rows_that_count_are_handed_over(self, paged_call, aiter, calls):
        call = paged_call([2, 1], [20, 33], dtype=torch.float16)
        self.attend(aiter, call._replace(batch=replace(call.batch, num_actual_tokens=3)))
        assert len(calls[-1].arguments["q"]) == len(calls[-1].arguments["out"]) == 3

    def test_no_requests_are_no_call(self, paged_call, aiter, calls):
        for causal in (True, False):
            assert self.attend(aiter, paged_call([], [], dtype=torch.float16, causal=causal)).isnan().all()
        assert calls == []

    def test_it_returns_no_lse(self, paged_call, aiter):
        call = paged_call([2], [20], dtype=torch.float16)
        with pytest.raises(UnsupportedError, match="the LSE not supported: it returns none"):
            aiter_adapter.unified_attention(aiter, *call, out=torch.empty_like(call.q), lse=torch.empty(4, len(call.q)))


def dense_rows(call: Any, request: int) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of one request, [seq_len, HK, D]."""
    k, v = key_value_rows(call.kv_cache, call.layer, "test")
    length = int(call.batch.seq_lens[request])
    key = torch.arange(length)
    block = call.batch.block_table[request, key // k.shape[1]].long()
    return k[block, key % k.shape[1]], v[block, key % k.shape[1]]


def attend_dense(aiter: Aiter, call: Any, out: torch.Tensor, lse: torch.Tensor | None, *, causal: bool) -> None:
    """flash_attn_varlen over the rows of a paged call, with zeros for what no query sees."""
    rows = [dense_rows(call, r) for r in range(call.batch.num_requests)]
    lens = torch.tensor([0, *(len(k) for k, _ in rows)])
    aiter_adapter.flash_attn_varlen(
        aiter,
        call.q,
        torch.cat([k for k, _ in rows]).nan_to_num(),
        torch.cat([v for _, v in rows]).nan_to_num(),
        call.layer,
        query_start_loc=call.batch.query_start_loc,
        key_start_loc=lens.cumsum(0).int(),
        max_query_len=call.batch.max_query_len,
        max_key_len=int(lens.max()),
        causal=causal,
        out=out,
        lse=lse,
    )


class TestFlashAttnVarlen:
    """Against the paged reference: the cache's rows, made dense."""

    @pytest.mark.parametrize("sinks", [None, [0.5, -1.0, 2.0, -torch.inf]], ids=str)
    def test_an_lse_without_keys_is_the_sink(self, sinks, paged_call, aiter):
        call = paged_call([2], [0], dtype=torch.float16, sinks=sinks)
        lse = torch.zeros(4, len(call.q))
        attend_dense(aiter, call, torch.empty_like(call.q), lse, causal=False)
        assert torch.equal(lse, torch.tensor(sinks or [-torch.inf] * 4)[:, None].expand_as(lse))

    @pytest.mark.parametrize("query_lens", [[], [0, 0]], ids=str)
    def test_no_query_is_no_call(self, query_lens, paged_call, aiter, calls):
        call = paged_call(query_lens, [3] * len(query_lens), dtype=torch.float16)
        out, k = torch.full_like(call.q, torch.nan), call.q.new_zeros(0, call.layer.num_kv_heads, call.layer.head_size)
        start_loc = call.batch.query_start_loc
        aiter_adapter.flash_attn_varlen(
            aiter,
            call.q,
            k,
            k,
            call.layer,
            query_start_loc=start_loc,
            key_start_loc=start_loc,
            max_query_len=0 if query_lens else 1,
            max_key_len=3,
            causal=True,
            out=out,
        )
        assert calls == []
        assert out.isnan().all()

    @pytest.mark.parametrize("right", range(5))
    @pytest.mark.parametrize("seq_lens", [[1, 3], [0, 2], [4, 4], [20, 1]], ids=str)
    def test_a_right_edge_hides_keys_from_more_queries_than_keys(self, seq_lens, right, paged_call, aiter):
        call = paged_call([2, 5], seq_lens, dtype=torch.float16, causal=False, window=(-1, right))
        call = call._replace(batch=with_tight_bounds(call.batch))
        out, lse = torch.full_like(call.q, torch.nan), torch.full((4, len(call.q)), torch.nan)
        attend_dense(aiter, call, out, lse, causal=False)
        lse[:, 7:] = torch.nan
        assert_agrees(call, out, lse)

    @pytest.mark.parametrize(
        ("window", "query_len", "seq_len", "told"),
        [
            ((-1, 2), 4, 2, 3),  # the first query does not see the last key
            ((-1, 2), 3, 2, 2),  # it does
            ((-1, 2), 4, 3, 3),  # AITER keeps the edge
            ((2, -1), 4, 2, 2),  # a left edge hides no key of so few
            ((2, 2), 4, 0, 0),
        ],
    )
    def test_aiter_is_told_of_more_keys_only_to_keep_an_edge(self, window, query_len, seq_len, told, paged_call, aiter, calls):
        call = paged_call([query_len], [seq_len], dtype=torch.float16, causal=False, window=window)
        call = call._replace(batch=with_tight_bounds(call.batch))
        attend_dense(aiter, call, torch.empty_like(call.q), None, causal=False)
        assert calls[-1].arguments["max_seqlen_k"] == told

    def test_windows_of_two_numbers_and_of_three(self, paged_call, aiter, calls):
        call = paged_call([3], [20], dtype=torch.float16, window=(4, 2))
        attend_dense(aiter, call, torch.empty_like(call.q), None, causal=True)
        assert calls[-1].arguments["window_size"] == (4, 0, 0)
        signature = aiter.signatures["flash_attn_varlen_func"]
        older = replace(signature, defaults={**signature.defaults, "window_size": (-1, -1)})
        given: list[dict] = []
        older_aiter = replace(
            aiter,
            signatures={**aiter.signatures, "flash_attn_varlen_func": older},
            functions={"flash_attn_varlen_func": lambda **arguments: given.append(arguments)},
        )
        attend_dense(older_aiter, call, torch.empty_like(call.q), None, causal=False)
        assert given[0]["window_size"] == (4, 2)

    @pytest.mark.parametrize("window", [(-1, -1), (0, 0), (4, 0)])
    @pytest.mark.parametrize(("rule", "words"), [({"sinks": [0.0] * 4}, "sinks"), ({"logits_soft_cap": 2.0}, "a soft cap")])
    def test_rules_that_assembly_kernels_drop_are_refused(self, rule, words, window, paged_call, aiter, calls):
        """A window past the longest sequence is dropped before the gate that would keep to CK's kernels, so none is a guard."""
        call = paged_call([3], [20], dtype=torch.bfloat16, head_size=128, window=window, **rule)
        with pytest.raises(UnsupportedError, match=f"{words} not supported: for bfloat16 and a head size of 128"):
            attend_dense(aiter, call, torch.empty_like(call.q), None, causal=True)
        assert calls == []

    def test_the_fallback_is_refused(self, paged_call, aiter, monkeypatch):
        monkeypatch.setenv("ENABLE_CK", "0")
        call = paged_call([3], [20], dtype=torch.float16)
        with pytest.raises(UnsupportedError, match="ENABLE_CK=0"):
            attend_dense(aiter, call, torch.empty_like(call.q), None, causal=True)

    @pytest.mark.parametrize(
        ("change", "argument"),
        [
            ({"k": torch.zeros(5, 2, 8)}, "k"),
            ({"out": torch.zeros(1)}, "out"),
            ({"key_start_loc": torch.zeros(2)}, "key_start_loc"),
        ],
        ids=str,
    )
    def test_bad_input_is_the_contracts_error(self, change, argument, paged_call, aiter, calls):
        call = paged_call([3], [20], dtype=torch.float16)
        k, v = dense_rows(call, 0)
        arguments = {
            "q": call.q,
            "k": k,
            "v": v,
            "query_start_loc": call.batch.query_start_loc,
            "key_start_loc": torch.tensor([0, 20], dtype=torch.int32),
            "out": torch.empty_like(call.q),
            **change,
        }
        with pytest.raises(ContractError, match=f"^{argument}:"):
            aiter_adapter.flash_attn_varlen(aiter, layer=call.layer, max_query_len=3, max_key_len=20, causal=True, **arguments)
        assert calls == []


def with_tight_bounds(batch: Any) -> Any:
    """The batch without rows that no request owns, and without slack in its bounds."""
    query_lens = batch.query_start_loc.diff()
    return replace(batch, num_actual_tokens=int(query_lens.sum()), max_query_len=int(query_lens.max()))


class TestPagedAttentionV1:
    def attend(self, aiter, call):
        batch = with_tight_bounds(call.batch)
        out = torch.full(call.q.shape, torch.nan, dtype=call.q.dtype)
        aiter_adapter.paged_attention_v1(aiter, *call[:3], batch, out=out)
        return out

    @pytest.mark.parametrize(
        "rules",
        [
            {},
            {"window": (4, 0)},
            {"window": (0, 3)},
            {"logits_soft_cap": 2.0},
            {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 1.0])},
            {"kv_cache_dtype": torch.float8_e4m3fn, **ONE_SCALE},
        ],
        ids=str,
    )
    def test_decodes_agree(self, rules, paged_call, aiter):
        call = paged_call([1, 1, 1], [20, 257, 1], head_size=64, dtype=torch.float16, **rules)
        assert_agrees(call, self.attend(aiter, call))

    def test_heads_that_are_not_packed_are_refused(self, paged_call, aiter, calls):
        call = paged_call([1, 1], [20, 33], head_size=64, dtype=torch.float16)
        apart = call.q.repeat_interleave(2, dim=1)[:, ::2]
        with pytest.raises(UnsupportedError, match="heads of q that are not packed"):
            self.attend(aiter, call._replace(q=apart))
        assert calls == []

    @pytest.mark.parametrize("stride", [0, 7, 65])
    def test_one_head_is_packed_whatever_its_stride(self, stride, paged_call, aiter):
        call = paged_call([1, 1], [20, 33], num_heads=1, num_kv_heads=1, head_size=64, dtype=torch.float16)
        call = call._replace(q=with_idle_strides(call.q, stride))
        assert_agrees(call, self.attend(aiter, call))

    def test_a_request_without_a_query_beside_a_row_of_padding_is_refused_by_its_values(self, paged_call, aiter, calls):
        call = paged_call([0, 1], [20, 33], head_size=64, dtype=torch.float16)
        batch = replace(with_tight_bounds(call.batch), num_actual_tokens=2)
        out = torch.empty_like(call.q)
        with pytest.raises(UnsupportedError, match="one query token"):
            aiter_adapter.paged_attention_v1(aiter, *call[:3], batch, out=out, validate=True)
        assert calls == []


class TestPaFwdAsm:
    def attend(self, call, **changes):
        given: list[dict] = []
        aiter = replace(recorded("2026-08"), functions={"pa_fwd_asm": lambda **arguments: given.append(arguments)})
        q = call.q.contiguous()
        batch = with_tight_bounds(call.batch)
        layer = replace(call.layer, **changes)
        aiter_adapter.pa_fwd_asm(aiter, q, call.kv_cache, layer, batch, out=torch.empty_like(q))
        return given[0]

    def test_decodes_agree(self, paged_call, aiter):
        options = {"layout": Layout.SHUFFLED, "head_size": 128, "dtype": torch.float16}
        call = paged_call([1, 1, 1], [20, 257, 1], **options)
        out = torch.full(call.q.shape, torch.nan, dtype=torch.float16)
        q = call.q.contiguous()
        aiter_adapter.pa_fwd_asm(aiter, q, *call[1:3], with_tight_bounds(call.batch), out=out, validate=True)
        assert_agrees(call, out)

    @pytest.mark.parametrize(
        ("keys", "validate", "is_right"),
        [(240, False, True), (241, False, False), (600, False, False), (600, True, True), (255, True, False)],
    )
    def test_lengths_that_the_files_attend_wrongly(self, keys, validate, is_right, paged_call):
        """ROCm/aiter#5654: without a look at the lengths, none above 240 is certain."""
        call = paged_call([1, 1], [20, keys], layout=Layout.SHUFFLED, head_size=128, dtype=torch.float16)
        aiter = replace(recorded("2026-08"), functions={"pa_fwd_asm": lambda **arguments: None})
        q, batch = call.q.contiguous(), replace(with_tight_bounds(call.batch), max_seq_len=keys)
        attend = partial(aiter_adapter.pa_fwd_asm, aiter, q, call.kv_cache, call.layer, batch, out=torch.empty_like(q))
        if is_right:
            attend(validate=validate)
        else:
            with pytest.raises(UnsupportedError, match="with 241 to 255 keys it attends slots past the last key"):
                attend(validate=validate)

    def test_planes_that_offsets_of_32_bits_do_not_reach(self, paged_call):
        """ROCm/aiter#3062. Blocks lie far apart, and nobody touches the memory between them."""
        call = paged_call([1, 1], [20, 33], layout=Layout.SHUFFLED, head_size=128, dtype=torch.float16)
        _, blocks, page = call.kv_cache.shape
        apart = (1 << 30) // (blocks - 1)
        far = torch.empty(2 * apart * blocks, dtype=torch.float16).as_strided((2, blocks, page), (apart * blocks, apart, 1))
        with pytest.raises(UnsupportedError, match=r"a cache of 2147\d{6} bytes for K not supported: its offsets have 32 bits"):
            self.attend(replace(call, kv_cache=far) if dataclasses.is_dataclass(call) else call._replace(kv_cache=far))


FORMS = {
    "unified_attention": {"query_lens": [2, 1]},
    "paged_attention_v1": {"head_size": 64},
    "pa_fwd_asm": {"head_size": 128, "layout": Layout.SHUFFLED},
}
REFUSED = [
    ("unified_attention", {"causal": False}, "non-causal attention not supported: its kernel asserts causal .vLLM #40176."),
    ("unified_attention", {"causal": [True, False]}, "non-causal attention"),
    ("unified_attention", {"attn_type": AttentionType.ENCODER_DECODER, "causal": False}, "encoder_decoder .* asserts causal"),
    ("unified_attention", {"sink_tokens": 2, "window": (3, 0)}, "sink_tokens.* mask"),
    ("unified_attention", {"chunked_local": 4}, "chunked_local.* mask"),
    ("unified_attention", {"bidirectional_ranges": [[(0, 1)], [(0, 1)]]}, "bidirectional ranges.* asserts causal"),
    ("unified_attention", {"sinks": [0.0] * 4, "alibi_slopes": torch.ones(4)}, "ALiBi with sinks .* where the context ends"),
    ("unified_attention", {"dtype": torch.float32}, "float32 .* TF32"),
    ("unified_attention", {"kv_cache_dtype": torch.int8}, "int8"),
    ("unified_attention", {"kv_cache_dtype": torch.float8_e4m3fn}, "scales per token"),
    ("unified_attention", {"kv_cache_dtype": torch.float8_e4m3fn, **HEAD_SCALES}, "scales per head"),
    ("unified_attention", {"head_size": 80}, "head size 80 .* power of two"),
    ("unified_attention", {"block_size": 48}, "block size 48 .* tile of 64 holds whole blocks"),
    ("unified_attention", {"layout": Layout.SHUFFLED}, "layout SHUFFLED"),
    ("paged_attention_v1", {"query_lens": [2, 1]}, "one query token"),
    ("paged_attention_v1", {"query_lens": [0, 1]}, "one query token"),
    ("paged_attention_v1", {"sinks": [0.0] * 4}, "sinks"),
    ("paged_attention_v1", {"window": (3, 0), "logits_soft_cap": 1.0}, "a soft cap with a window"),
    ("paged_attention_v1", {"alibi_slopes": torch.ones(4), "logits_soft_cap": 1.0}, "a soft cap with ALiBi"),
    ("paged_attention_v1", {"head_size": 32}, "head size 32 .*vLLM #34570"),
    ("paged_attention_v1", {"block_size": 64}, "block size 64"),
    ("paged_attention_v1", {"layout": Layout.X_PACKED}, "layout X_PACKED"),
    ("pa_fwd_asm", {"scale": 0.1}, "a scale of 0.1 not supported: it is 0.0883883 inside"),
    ("pa_fwd_asm", {"window": (3, 0)}, "a sliding window"),
    ("pa_fwd_asm", {"sinks": [0.0] * 4}, "sinks"),
    ("pa_fwd_asm", {"logits_soft_cap": 1.0}, "a soft cap"),
    ("pa_fwd_asm", {"block_size": 8}, ""),
    ("pa_fwd_asm", {"block_size": 32}, ""),
]
"""A function of AITER, a call that it does not serve, and a part of the message."""


@pytest.mark.parametrize(("function", "changes", "words"), REFUSED, ids=[f"{name}: {words}" for name, _, words in REFUSED])
def test_a_call_that_a_kernel_of_aiter_does_not_serve_is_refused_first(function, changes, words, paged_call, aiter, calls):
    options = {"query_lens": [1, 1], "dtype": torch.float16, **FORMS[function], **changes}
    call = paged_call(options.pop("query_lens"), [20, 33], **options)
    call = call._replace(q=call.q.contiguous() if function == "pa_fwd_asm" else call.q, batch=with_tight_bounds(call.batch))
    out = torch.full(call.q.shape, 7.0, dtype=call.q.dtype)
    with pytest.raises(UnsupportedError, match=f"^AITER's {function}: .*{words}"):
        getattr(aiter_adapter, function)(aiter, *call, out=out)
    assert calls == []
    assert (out == 7).all()


@pytest.mark.skipif(find_aiter().missing is not None, reason="needs AMD's AITER: tox run -e others")
class TestInstalled:
    """The real package of this environment, whose version pyproject.toml pins: 0.1.7."""

    def test_only_lacking_features_have_reasons(self):
        reasons = features_of(find_aiter())
        assert [name for name, reason in reasons.items() if reason] == ["prefill_sinks", "unified_q_scales"]

    def test_sinks_in_a_prefill_are_refused(self, paged_call):
        call = paged_call([3], [3], dtype=torch.float16, sinks=[0.0] * 4)
        with pytest.raises(UnsupportedError, match=r"sink_ptr not supported: no such argument in AITER 0\.1\.7"):
            attend_dense(find_aiter(), call, torch.empty_like(call.q), None, causal=True)

    def test_asking_imports_nothing(self):
        assert find_aiter().signatures["unified_attention"].module == "aiter.ops.triton.unified_attention"
        assert "aiter" not in sys.modules
