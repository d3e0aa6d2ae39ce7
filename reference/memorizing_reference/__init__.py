"""The reference: a memorizing transformer in NumPy, written to be read.

Reading order: `config`, `memory`, `search`, `bucketed_search`, `positions`,
`attention`, `cache`, `parameters`, `model`, `segments`, `perplexity`, and
`gradients` for where gradient flows and where it stops. Then, for models that were
trained without memory, `rotary`, `local_context`, `pretrained_attention` and
`pretrained_model`.
"""
