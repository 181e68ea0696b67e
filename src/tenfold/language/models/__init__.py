"""Language models: Llama and its configuration, tokenizers, text, weights of every layout."""
