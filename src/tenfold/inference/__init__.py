"""Inference without gradients: KV cache, pages, prepared blocks, whole stacks in one call."""
