"""Bounded readers with typed errors, sources, the stateful loader, and samples that come inside wheels."""
