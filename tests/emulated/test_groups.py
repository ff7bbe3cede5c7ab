"""Instructions that run as one: they do what they do one after another, and a fault names the one that made it."""

import re

import numpy as np
import pytest
from attn_amdgcn import EmulationFault
from attn_amdgcn.instructions.forms import GROUPED, VECTOR
from attn_amdgcn.operands import KINDS

from tests.emulated.lines import ran
from tests.emulated.tables import edges

BETWEEN = "\nv_swap_b32 v190, v190\n"
"""Instructions do not change places with this one."""
COUNT, WAVES = 5, 3
DATA = {"data": np.arange(256, dtype=np.uint8)}
RESOURCE = {4: 0, 5: 0, 6: 256, 7: 0x27000}
"""s[4:7]; what it lacks is the address, which `ran` gives in s[100:101]."""


def both(lines: list[str], **given) -> tuple[np.ndarray, np.ndarray]:
    """All vector registers after lines that run as one, and after lines that do not."""
    return ran("\n".join(lines), **given).vector, ran(BETWEEN.join(lines), **given).vector


def named(kind: str, number: int) -> str:
    return "s[20:21]" if kind == "mask" else f"v[{number}:{number + 1}]" if KINDS[kind].bits == 64 else f"v{number}"


@pytest.mark.parametrize("name", [name for name in GROUPED if name in VECTOR])
def test_instructions_that_run_as_one_write_what_each_of_them_writes(name):
    meaning = VECTOR[name]
    rng = np.random.default_rng(len(name))
    kind = next((kind for kind in meaning.sources if kind != "mask"), "b32").lstrip("*")
    values = np.array(edges(kind if kind[0] == "f" else f"u{KINDS[kind].bits}"), np.uint64)
    v = {number: rng.choice(values, (WAVES, 64)).astype(np.uint32) for number in range(10, 90)}
    lines = []
    for i in range(COUNT):
        sources = [named(of.lstrip("*"), 10 + 6 * i + 2 * j) for j, of in enumerate(meaning.sources) if not of.startswith("*")]
        lines.append(f"{name}_e64 {', '.join([named(meaning.results[0], 60 + 4 * i), *sources])}")
    together, apart = both(lines, v=v, s={20: 0x0F0F1234, 21: 0x55AA}, num_waves=WAVES)
    assert np.array_equal(together, apart)
    assert not np.array_equal(together[60], v[60]) or name == "v_mov_b32"


@pytest.mark.parametrize("exec", [-1, 0x00FF00FF00FF])
@pytest.mark.parametrize("races", [False, True])
@pytest.mark.parametrize(
    "lines",
    [
        [f"buffer_load_dwordx2 v[{20 + 2 * i}:{21 + 2 * i}], v{1 + i}, s[4:7], 0 offen offset:{4 * i}" for i in range(3)],
        [f"buffer_load_ubyte v{20 + i}, v1, s[4:7], 0 offen offset:{40 * i}" for i in range(3)],
        [f"ds_read_b64 v[{20 + 2 * i}:{21 + 2 * i}], v{1 + i} offset:{8 * i}" for i in range(3)],
        [f"ds_read2_b32 v[{20 + 2 * i}:{21 + 2 * i}], v{1 + i} offset0:{i} offset1:9" for i in range(3)],
        [f"ds_bpermute_b32 v{20 + i}, v{1 + i}, v{2 + i} offset:{4 * i}" for i in range(3)],
        [f"ds_write_b32 v1, v{20 + i} offset:{2 * i}" for i in range(3)] + ["s_waitcnt lgkmcnt(0)", "ds_read_b64 v[40:41], v1"],
        [f"ds_write_b16 v1, v{20 + i} offset:{1 + i}" for i in range(3)] + ["s_waitcnt lgkmcnt(0)", "ds_read_b64 v[40:41], v1"],
        [f"ds_write2_b32 v1, v{20 + i}, v{30 - i} offset0:{i} offset1:2" for i in range(3)]
        + ["s_waitcnt lgkmcnt(0)", "ds_read_b128 v[40:43], v1"],
        [f"v_pk_mul_f32 v[{20 + 2 * i}:{21 + 2 * i}], v[{2 * i}:{1 + 2 * i}], v[8:9] op_sel_hi:[1,0]" for i in range(3)],
        [f"v_perm_b32 v{20 + i}, v{i}, v{1 + i}, s{30 + i % 2}" for i in range(4)],
    ],
)
def test_loads_stores_and_permutes_that_run_as_one(lines, races, exec):
    rng = np.random.default_rng(7)
    v = {0: rng.integers(0, 1 << 30, 64), 8: np.float32(0.5), 9: np.float32(3)}
    v |= {number: 4 * rng.permutation(np.arange(64)) % 200 for number in range(1, 8)}
    v |= {number: rng.integers(0, 1 << 32, 64) for number in range(20, 32)}
    words = "\n".join(["s_mov_b32 s4, s100", "s_and_b32 s5, s101, 0xffff", ""])
    given = {"v": v, "s": RESOURCE | {30: 0x05040100, 31: 0x07060302}, "buffers": DATA, "exec": exec, "races": races}
    together, apart = both([words + lines[0], *lines[1:]], **given)
    assert np.array_equal(together, apart)
    assert not np.array_equal(together[20:44], ran("s_nop 0", **given).vector[20:44])


OF_ANY_KIND = (
    "v_add_u32_e32 v{}, v{}, v{}",
    "v_mul_f32_e32 v{}, v{}, v{}",
    "v_add3_u32 v{}, v{}, v{}, v{}",
    "v_cmp_gt_u32_e32 vcc, v{}, v{}",
    "v_cndmask_b32_e32 v{}, v{}, v{}, vcc",
    "v_pk_mul_f32 v[{0}:{0}+1], v[{1}:{1}+1], v[{2}:{2}+1]",
    "v_mfma_f32_16x16x16_bf16 v[{0}:{0}+3], v[{1}:{1}+1], v[{2}:{2}+1], v[{3}:{3}+3]",
    "v_readlane_b32 s{}, v{}, 3",
    "v_writelane_b32 v{}, s{}, 5",
    "v_mov_b32_e32 v{}, s{}",
    "s_add_u32 s{}, s{}, s{}",
    "s_cselect_b32 s{}, s{}, s{}",
    "s_addc_u32 s{}, s{}, scc",
    "s_and_b64 exec, exec, s[{0}:{0}+1]",
    "s_mov_b64 exec, -1",
    "ds_write_b32 v20, v{} offset:16",
    "ds_read_b32 v{}, v20 offset:16",
    "ds_bpermute_b32 v{}, v20, v{}",
)
"""Instructions on v0 to v9, s0 to s7, and LDS at v20."""


@pytest.mark.parametrize("seed", range(20))
def test_instructions_that_change_places_leave_what_they_left_in_their_order(seed):
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(120):
        text = OF_ANY_KIND[rng.integers(len(OF_ANY_KIND))].format(*(4 * rng.integers(2, size=4) + rng.integers(0, 2, 4) * 2))
        lines.append(re.sub(r"(\d+)\+(\d)", lambda found: str(int(found[1]) + int(found[2])), text))
        if lines[-1].startswith("ds_"):
            lines.append("s_waitcnt lgkmcnt(0)")
    v = {number: rng.integers(0, 1 << 32, (WAVES, 64)) for number in range(12)} | {20: 4 * np.arange(64)}
    given = {"v": v, "s": {number: int(rng.integers(1 << 32)) for number in range(12)}, "num_waves": WAVES}
    together, apart = ran("\n".join(lines), **given), ran(BETWEEN.join(lines), **given)
    for name in ("vector", "scalar", "scc"):
        assert np.array_equal(getattr(together, name), getattr(apart, name)), name
    assert np.array_equal(together.shared.lds, apart.shared.lds)


def test_a_load_does_not_change_places_with_a_store():
    after = ran("ds_read_b32 v1, v0\nds_write_b32 v0, v2\nds_read_b32 v3, v0", v={0: 4 * np.arange(64), 2: 7})
    assert (after.vector[1] != 7).all()
    assert (after.vector[3] == 7).all()


def test_an_instruction_that_needs_the_one_before_it_runs_after_it():
    assert ran("\n".join(["v_add3_u32 v1, v1, v1, v1"] * 4), v={1: 1}).vector[1, 0, 0] == 81
    after = ran("v_mov_b32 v1, v2\nv_mov_b32 v2, v3\nv_mov_b32 v3, v1", v={1: 1, 2: 2, 3: 3})
    assert after.vector[1:4, 0, 0].tolist() == [2, 3, 2]


@pytest.mark.parametrize("load", ["ds_read_b32 v{}, v{}", "global_load_dword v{}, v{}, s[100:101]"])
def test_a_fault_names_the_instruction_that_made_it(load):
    lines = [load.format(10 + i, 1 + i) for i in range(3)]
    bad = np.zeros(64, np.uint32)
    bad[5] = 4096
    with pytest.raises(EmulationFault, match=rf"lane 5\): `{lines[1].split()[0]} v11, v2.*`, line 2 of the assembly"):
        ran("\n".join(lines), v={1: 0, 2: bad, 3: bad}, buffers=DATA)


def test_scc_is_what_the_last_instruction_before_its_reader_leaves():
    text = "s_add_u32 s0, s1, s1\ns_and_b32 s2, s0, 0\ns_or_b32 s3, s1, 1\ns_cselect_b32 s4, 7, 8\ns_xor_b32 s5, s1, s1"
    after = ran(f"{text}\ns_cbranch_scc1 .L\ns_mov_b32 s6, 9\n.L:\ns_nop 0", s={1: 1 << 31, 6: 0})
    assert after.scalar[0, [4, 6]].tolist() == [7, 9]
    after = ran("s_add_u32 s0, s1, s1\ns_nop 0\ns_addc_u32 s2, s0, 0", s={1: 1 << 31})
    assert after.scalar[0, 2] == 1
