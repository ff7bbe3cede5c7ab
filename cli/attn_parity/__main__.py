"""`python -m attn_parity` is the command `attn-parity`."""

from attn_parity import main

main()
