"""The Memorizing Transformer in JAX: training, evaluation, generation."""
