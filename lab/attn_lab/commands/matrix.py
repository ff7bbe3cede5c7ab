"""`python -m attn_lab matrix`: what each backend can do."""

import click
from attn_lab import pages


@click.group("matrix")
def command() -> None:
    """Say what each backend can do."""


@command.command("page")
def _page() -> None:
    """Write docs/generated/backends.md."""
    from attn_lab.matrix.backends import PAGE, backend_page  # imports Triton

    pages.write(PAGE, backend_page())
