"""Options that several benchmarks have."""

from pathlib import Path

import click

only_option = click.option(
    "--only", multiple=True, metavar="TEXT", help="Only cases whose name contains TEXT; repeatable. Default: all."
)
vllm_option = click.option("--vllm", type=click.Path(path_type=Path), help="A folder that holds the package `vllm`.")
aiter_option = click.option("--aiter", type=click.Path(path_type=Path), help="A folder that holds AMD's package `aiter`.")
commit_option = click.option("--commit", help="The commit to record; default: that of the git checkout.")
