"""All that is stock mlc_llm's: what it calls in a library, and what tells it about RWKV World."""

PACKAGE = "mlc_llm"
