"""What a target declares away: no case has it, so the run says nothing about it."""

from attn_contract import RULES, AttentionType
from attn_fuzz.account.gaps import SUBJECTS
from attn_fuzz.targets.support import EVERYTHING, WITH_LATENT, Support


def away(support: Support) -> dict[str, list[str]]:
    """By field of Support, and of its Engine, what the contract has and the support leaves out.

    "without" has what each layer must have, so that layers without it are left out. Sizes are no part of this: each kernel has
    its own.
    """
    found = {
        "attn_types": [str(each) for each in AttentionType if each not in support.attn_types],
        "rules": _missing(WITH_LATENT.rules, support.rules),
        "without": [*support.required_rules, *([] if support.unquantized else ["a quantized cache"])],
        "dtypes": _missing(EVERYTHING.dtypes, support.dtypes),
        "layouts": [each.name for each in EVERYTHING.layouts if each not in support.layouts],
        "cache_dtypes": _missing(EVERYTHING.cache_dtypes, support.cache_dtypes),
        "output_dtypes": _missing(EVERYTHING.output_dtypes, support.output_dtypes),
        "engine": support.engine.restricted,
    }
    return {name: values for name, values in found.items() if values}


def subjects(support: Support) -> set[str]:
    """The subjects of mistakes (`attn_fuzz.account.gaps`) that cases of this support can have."""
    reads_cache = any(each.reads_cache for each in support.attn_types)
    quantized = reads_cache and bool(support.cache_dtypes)
    others = {"k_scale, v_scale": quantized, "kv_cache_dtype": quantized, "output_scale": bool(support.output_dtypes)}
    others |= {"block_table": reads_cache, "keys past the end": reads_cache}
    for name, rule in RULES.items():
        others[name] = name in support.rules and bool({*rule.attn_types} & {*support.attn_types})
    return {each for each in SUBJECTS if others.get(each, True)}


def line(support: Support) -> list[str]:
    """A line on what is declared away, with the engine's code where it is cited."""
    found, cited = away(support), support.engine.cited
    if "engine" in found:
        found["engine"] = [f"{name} ({cited[name]})" if name in cited else name for name in found["engine"]]
    parts = [f"{name}: {', '.join(values)}" for name, values in found.items()]
    return [f"declared away, and not given to it: {'; '.join(parts)}"] if parts else []


def _missing(all_values: tuple[str, ...], values: tuple[str, ...]) -> list[str]:
    return [each for each in all_values if each not in values]
