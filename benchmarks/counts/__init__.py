"""What launches execute on the emulator, counted: ours beside vLLM's and AITER's."""
