"""Weights in and out: safe loading, key maps, strict differences."""
