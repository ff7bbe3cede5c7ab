"""The calls whose launches are counted: the emulator runs each in seconds."""

from benchmarks.speed.cases import Attention

_GPT_OSS = {"num_heads": 64, "num_kv_heads": 8, "head_size": 64, "sinks": True}
CASES = (
    Attention(name="decode, 4 x 1k", query_lens=(1,) * 4, seq_lens=(1024,) * 4),
    Attention(name="decode, fp8 cache, 4 x 1k", query_lens=(1,) * 4, seq_lens=(1024,) * 4, float8_cache=True),
    Attention(name="decode, H64/HK8/D64 + sinks, 4 x 1k", query_lens=(1,) * 4, seq_lens=(1024,) * 4, **_GPT_OSS),
    Attention(name="prefill, 1 x 512", query_lens=(512,), seq_lens=(512,)),
    Attention(name="prefill, window 128, 1 x 512", query_lens=(512,), seq_lens=(512,), window=128),
    Attention(name="extend, 2 x 128 new on 512", query_lens=(128,) * 2, seq_lens=(640,) * 2),
)
