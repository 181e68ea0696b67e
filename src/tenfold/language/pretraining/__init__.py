"""Pretraining of language models: text, facts to recall, evaluation of text."""
