"""Speed of latent attention (MLA), beside vLLM's Triton kernel and beside what the GPU can do at best."""
