"""What tells stock mlc_llm about RWKV World; the only room that knows mlc_llm."""

PACKAGE = "mlc_llm"
