"""Language models: Llama, speculative decoding, serving, pretraining, distillation of drafters."""
