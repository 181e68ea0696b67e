"""Text alignment: text towers, tokens, contrastive training, zero-shot."""
