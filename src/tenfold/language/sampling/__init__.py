"""Sampling: probabilities from logits, penalties, and randomness that depends on no neighbour."""
