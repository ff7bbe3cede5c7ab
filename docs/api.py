"""Writes a page for each module of the Python API, of its docstrings: python docs/api.py FOLDER. A warning is an error."""

import importlib
import sys
import warnings
from pathlib import Path

MODULES = (
    "attn_contract",
    "attn_reference",
    "attn_reference.latent",
    "attn_optimized",
    "attn_optimized.backends",
    "attn_optimized.context_parallel",
    "attn_optimized.selector",
    "attn_amdgcn",
    "attn_fuzz",
    "attn_fuzz.cases.case",
    "attn_fuzz.foreign",
    "attn_fuzz.given",
    "attn_fuzz.properties",
    "attn_fuzz.shadow",
    "attn_fuzz.targets",
    "attn_fuzz.targets.indexer",
    "attn_fuzz.targets.modes",
    "attn_transformers",
    "attn_transformers.paged_cache",
)


def main(folder: Path) -> None:
    import pdoc

    for name in MODULES:
        module = importlib.import_module(name)
        for exported in getattr(module, "__all__", ()):
            getattr(module, exported)  # attn_fuzz imports what it exports when it is asked for, and pdoc does not ask
    warnings.simplefilter("error")
    pdoc.render.configure(docformat="google", footer_text="attn-parity")
    pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
