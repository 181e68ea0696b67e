"""Benchmarks, one file per comparison with a named peer: both sides in the same run, ratios and medians only."""
