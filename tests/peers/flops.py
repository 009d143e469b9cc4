"""The floating-point operations that a step cannot do without.

For one token in one layer, with hidden size h, intermediate size i, rank r and sequences of length L:

    linears, forward            2 (4h² + 2hi)          query, key, value, output; up and down
    linears, backward           2 (4h² + 2hi)          gradients of their inputs; frozen weights have none
    attention, forward          4 L h                  QKᵀ and PV
    attention, backward         8 L h                  gradients of P, V, Q and K
    LoRA on query and value     2 · 4 h r  and  2 · 8 h r

Below the lowest adapter nothing needs a gradient, so the lowest layer goes without the gradients of the
inputs of its query, key and value (2 · 3h²), of K (2 L h), and of the inputs of A (2 · 2hr). The head reads
the first token alone, so the highest layer needs keys and values of all tokens, and everything else of one
token a sequence. Embeddings, norms, activations, softmax, the head and AdamW are not counted: together they
are under 1 %.
"""

import json
from pathlib import Path


def shape(model: Path) -> tuple[int, int, int]:
    """Layers, hidden and intermediate size of a model's folder."""
    config = json.loads((model / "config.json").read_text())

    def of(*names: str) -> int:
        return next(config[name] for name in names if name in config)

    return (
        of("num_hidden_layers", "n_layers"),
        of("hidden_size", "dim"),
        of("intermediate_size", "hidden_dim"),
    )


def step(model: Path, sequences: int, length: int, rank: int) -> float:
    """Useful operations of one LoRA step on query and value of every layer, without padding."""
    layers, h, i = shape(model)
    linears = 2 * (4 * h * h + 2 * h * i)
    attention = 4 * length * h
    adapters = 2 * 4 * h * rank
    layer = 2 * linears + 3 * attention + 3 * adapters
    unneeded = 2 * 3 * h * h + 2 * length * h + 2 * 2 * h * rank
    # Of the highest layer: keys and values with the value's adapter, and the rest for one token.
    pairs = 2 * 2 * 2 * h * h + 3 * 2 * 2 * h * rank
    tokens = (layers - 1) * layer + pairs - unneeded
    return float(sequences * (length * tokens + layer - pairs))
