"""Cache managers of other packages, behind the protocol of `attn_fuzz.serving.manager`."""
