"""The instructions that the table reads from gfx950's words are assembled again by Triton's assembler, which knows gfx950."""

import re
import struct

import pytest
from attn_amdgcn import AmdgcnError, code_objects
from attn_amdgcn.gfx950_words import instruction_of
from triton.backends.amd.compiler import assemble_amdgcn

FILES = ("gfx950/fmha_v3_fwd/*.co", "gfx950/mla/mla_a8w8_qh16_qseqlen4_gqaratio16.co")


def words_of(code: str) -> list[int]:
    """The words that an assembler makes of lines."""
    content = assemble_amdgcn(f'\t.amdgcn_target "amdgcn-amd-amdhsa--gfx950"\n\t.text\n{code}\n', "gfx950", "")
    place, size, count, names = *struct.unpack_from("<40xQ10xHHH", content)[:1], *struct.unpack_from("<58xHHH", content)
    sections = [struct.unpack_from("<IIQQQQ", content, place + size * i) for i in range(count)]
    strings = sections[names][4]
    (text,) = (each for each in sections if content[strings + each[0] :].startswith(b".text\0"))
    return list(struct.unpack_from(f"<{text[5] // 4}I", content, text[4]))


@pytest.mark.parametrize(
    "text",
    [
        "ds_read_b64_tr_b16 v[4:5], v7",
        "ds_read_b64_tr_b16 a[250:251], v255 offset:65528",
        "ds_read_b64_tr_b8 a[168:169], v10 offset:3072",
        "v_mfma_f32_16x16x128_f8f6f4 v[0:3], v[8:15], v[16:23], v[4:7]",
        "v_mfma_f32_16x16x128_f8f6f4 v[36:39], a[0:7], v[248:255], 0",
        "v_mfma_f32_32x32x64_f8f6f4 v[16:31], v[4:11], a[40:47], v[16:31]",
        "v_mfma_f32_16x16x32_bf16 v[0:3], v[8:11], v[252:255], 0",
        "v_mfma_f32_32x32x16_bf16 v[16:31], a[4:7], v[40:43], v[16:31]",
        "v_mfma_f32_32x32x16_bf16 v[16:31], v[4:7], a[40:43], 0",
        "v_cvt_pk_bf16_f32 v3, v200, v17",
        "buffer_load_dwordx4 v9, s[8:11], s60 offen lds",
        "buffer_load_dwordx4 v9, s[96:99], m0 offen offset:4095 lds",
        "buffer_load_dwordx4 v9, s[8:11], 0 offen offset:16 lds",
        "global_load_lds_dwordx4 v[242:243], off",
        "global_load_lds_dwordx4 v[8:9], off offset:-16",
        "global_load_lds_dwordx4 v7, s[2:3] offset:4095",
        "v_permlane32_swap_b32_e32 v20, v255",
        "v_permlane16_swap_b32_e32 v255, v1",
    ],
)
def test_words_become_the_text_that_they_were_made_of(text):
    words = words_of(text)
    assert instruction_of(words[0], [*words, 0][1]) == (text, len(words))


@pytest.mark.parametrize(
    "text",
    [
        "v_mfma_f32_32x32x16_bf16 v[16:31], v[4:7], v[40:43], v[16:31] cbsz:1",
        "v_mfma_f32_32x32x16_bf16 a[16:31], v[4:7], v[40:43], a[16:31]",
        "v_mfma_f32_16x16x128_f8f6f4 v[0:3], v[8:15], v[16:23], v[4:7] cbsz:1",
        "v_mfma_f32_16x16x128_f8f6f4 v[0:3], v[8:15], v[16:23], v[4:7] blgp:1",
        "buffer_load_dwordx4 v9, s[8:11], 0 offen sc0 lds",
        "global_load_lds_dwordx4 v[8:9], off nt",
        "v_cvt_pk_bf16_f32 v3, -v200, v17",
        "v_cvt_pk_bf16_f32 v3, |v200|, v17",
    ],
)
def test_other_modifiers_are_other_words(text):
    assert instruction_of(*words_of(text)[:2]) is None


def test_files_of_aiter_assemble_to_the_words_that_they_have():
    """So no word that LLVM 19 reads as gfx942's means something else on gfx950."""
    from attn_fuzz import foreign
    from attn_fuzz.targets.packages.aiter import assembly as aiter_assembly

    try:
        files = [file for pattern in FILES for file in sorted(aiter_assembly.files().glob(pattern))]
        code_objects.text_of(files[0])
    except (foreign.MissingSourcesError, IndexError, AmdgcnError) as error:
        pytest.skip(f"AITER's files and LLVM's tools are needed: {error}")
    for file in files:
        code, _, _ = code_objects.text_of(file).partition(".amdhsa_kernel")
        lines = [line.partition(" ; ") for line in code.splitlines()]
        own = [int(word, 16) for _, _, comment in lines for word in re.findall(r"\b[0-9A-F]{8}\b", comment)]
        assert words_of("\n".join(line for line, _, _ in lines)) == own, file.name
