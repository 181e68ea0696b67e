"""One file per comparison with a named peer. Both sides are measured in the same run; ratios and medians only."""
