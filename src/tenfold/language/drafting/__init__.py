"""Speculative decoding, the drafting side: trees, drafters, rejection sampling."""
