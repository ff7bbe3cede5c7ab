"""`python -m attn_vllm_recording FOLDER`: the summary of a recording."""

import os
import sys
from pathlib import Path

import click
from attn_fuzz.errors import EXIT_FAULT, end_with_own_exit_code

from attn_vllm_recording.summary import FolderError, Summary


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Sum up what the processes of a vLLM engine have recorded in FOLDER, which ATTN_PARITY_RECORDING named.

    Exit code 0: all judged calls are right. 1: a call is wrong. 2: no call was judged, or a file was left out. The cache, block
    tables and lengths that a call was given are taken for true.
    """
    try:
        summary = Summary.of(folder)
    except FolderError as error:
        click.echo(f"attn_vllm_recording: {error}", err=True)
        raise SystemExit(EXIT_FAULT) from None
    try:
        click.echo("\n".join(summary.lines()))
    except BrokenPipeError:  # click would end with 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise SystemExit(summary.exit_code)


if __name__ == "__main__":
    end_with_own_exit_code()
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
