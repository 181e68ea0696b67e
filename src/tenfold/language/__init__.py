"""Llama on the shared block."""
