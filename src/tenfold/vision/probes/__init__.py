"""Probes of frozen features: k-NN, linear, dense prediction, discovery, tracking, matching."""
