"""Curation of training sets: embeddings, near-duplicates, clusters, sampling."""
