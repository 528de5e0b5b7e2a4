"""Relax passes that add what mlc_llm's engine calls beside the model, one file each."""
