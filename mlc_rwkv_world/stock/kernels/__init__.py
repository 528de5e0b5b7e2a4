"""TIR of what only mlc_llm's engine asks for."""
