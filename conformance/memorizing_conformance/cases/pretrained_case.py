"""How cases of pre-trained models are put together.

Results by hand come from two models that need no reference: one that shows what it
sees (`showing`), and full attention over the local context alone (`pretrained`).
"""

from collections.abc import Callable, Sequence

import numpy as np

from memorizing_conformance import models, showing
from memorizing_conformance.cases.case import Case
from memorizing_conformance.cases.model import stacked
from memorizing_conformance.implementation import Arrays
from memorizing_conformance.models import Config
from memorizing_conformance.pretrained import (
    JOINT,
    local_positions,
    logits_of_llama,
)

# Of one document of 13 tokens without repetition: 4 + 4 + 4 + 1.
SMALL: Config = {
    **JOINT,
    "vocab_size": 13,
    "num_layers": 2,
    "model_dim": 6,
    "num_heads": 4,
    "mlp_dim": 7,
    "memory_layers": (1,),
    "memory_size": 6,
    "top_k": 3,
    "num_sinks": 2,
    "local_window": 8,
    "cache_length": 3,
    "segment_length": 4,
}
LENGTH = 13


def drawn(
    name: str,
    rules: tuple[str, ...],
    says: str,
    seed: int,
    *,
    lengths: Sequence[int] = (LENGTH, LENGTH),
    prepare: Callable[[Arrays], Arrays] = lambda parameters: parameters,
    by_hand: int | None = None,
    **sizes: object,
) -> Case:
    """Returns a case of the model of SMALL, reading drawn documents.

    Args:
      name: of the folder.
      rules: what it is about.
      says: the case in one sentence.
      seed: of parameters and documents.
      lengths: of the documents.
      prepare: changes the parameters, so that the rule lies in view.
      by_hand: if each segment reads as full attention over sinks, so many positions
        before it and itself does, how many that are.
      sizes: where they are not those of SMALL.
    """
    config = {**SMALL, **sizes}
    documents = models.draw_documents(seed, lengths, SMALL["vocab_size"])
    parameters = prepare(models.draw_parameters(config, seed))
    arrays = stacked(models.cut(config, documents))
    results = {}
    if by_hand is not None:
        reach = {**config, "cache_length": by_hand}
        results["logits"] = _over_local_contexts(reach, parameters, documents)
    arrays |= {f"parameters.{name}": array for name, array in parameters.items()}
    return Case("model", name, rules, says, {"config": config}, arrays, results)


def _over_local_contexts(
    config: Config, parameters: Arrays, documents: Sequence[np.ndarray]
) -> np.ndarray:
    length = config["segment_length"]
    num_segments = -(-LENGTH // length)
    logits = np.zeros((num_segments, len(documents), length, config["vocab_size"]))
    for row, document in enumerate(documents):
        for step in range(num_segments):
            first = step * length
            count = min(length, LENGTH - first)
            context = document[local_positions(config, first, count)]
            found = logits_of_llama(config, parameters, context)[-count:]
            logits[step, row, :count] = found
    return logits


def shown(
    name: str,
    rules: tuple[str, ...],
    says: str,
    seen: Callable[[int, int], Sequence[int]],
    **sizes: object,
) -> Case:
    """Returns a case in which each position reads the mean of what it sees.

    Args:
      name: of the folder.
      rules: what it is about.
      says: the case in one sentence.
      seen: the positions that one sees, by the number of tokens before its segment
        and its own number.
      sizes: where they are not those of SMALL.
    """
    own = {"cache_length": 3, "segment_length": 4, "num_sinks": 2, "local_window": 8}
    # One token more than the document has, since half a head must be a whole number.
    config = showing.config_of(LENGTH + 1, **(own | {"memory_size": 0} | sizes))
    document = models.draw_documents(1, [LENGTH], LENGTH)[0]
    length = config["segment_length"]
    logits = np.zeros((-(-LENGTH // length), 1, length, LENGTH + 1))
    for i in range(LENGTH):
        step, place = divmod(i, length)
        positions = seen(step * length, i)
        weights = np.zeros((1, LENGTH + 1))
        weights[0, document[list(positions)]] = 1 / len(positions)
        logits[step, 0, place] = showing.logits_of(config, weights)[0]
    arrays = stacked(models.cut(config, [document], batch=1))
    for parameter, array in showing.parameters_of(config).items():
        arrays[f"parameters.{parameter}"] = array
    settings = {"config": config}
    return Case("model", name, rules, says, settings, arrays, {"logits": logits})
