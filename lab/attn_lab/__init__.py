"""The laboratory: what only maintainers of attn-parity use. It may import all of the project; nothing imports it, and no wheel
has it. `python -m attn_lab --help`, in the root of a checkout, lists its commands."""
