r"""Writes the keys and queries of a trained memory layer, for tests of recall.

    python conformance/examples/export_trained_keys.py --tokens .cache/demo/tokens \
        --output conformance/memorizing_conformance/trained_keys.npz

It reads the first test document that is long enough with the demo's trained model,
and keeps what the two heads with the most open gates stored, in the order in which
they stored it, and what those heads asked for next. `make demo` prepares the tokens.

The file holds int8 numbers to be divided by `unit`, 64: a grid coarse enough for a
small file, on which inner products are exact in float32.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from memorizing_data.token_files import TokenFileError, TokenFiles, open_split
from memorizing_jax import model, parameter_files
from memorizing_jax.errors import InputError
from memorizing_jax.parameter_files import Trained
from memorizing_jax.parameters import Parameters

NUM_KEYS = 4096
NUM_QUERIES = 256
NUM_HEADS = 2
UNIT = 64
PARAMETERS = Path(__file__).parents[2] / "jax_impl/demo/with_memory.safetensors"


def stored_keys(
    trained: Trained, parameters: Parameters, tokens: np.ndarray
) -> np.ndarray:
    """Returns what the first memory layer stores, [tokens, num_heads, head_dim]."""
    config = trained.model.replace(memory_size=len(tokens))
    state = model.init_state(config, batch=1)
    for first in range(0, len(tokens), config.segment_length):
        segment = tokens[None, first : first + config.segment_length]
        opens, count = jnp.full(1, first == 0), jnp.full(1, segment.shape[1])
        _, state, _ = _forward(parameters, state, segment, opens, count, config)
    return np.asarray(state.memories[0].keys[0]).swapaxes(0, 1)


def export(trained: Trained, files: TokenFiles) -> dict[str, np.ndarray]:
    """Returns the arrays of the file.

    Raises:
      InputError: no document is long enough.
    """
    length = NUM_KEYS + NUM_QUERIES
    long = [i for i, d in enumerate(files.documents) if d.num_tokens >= length]
    if not long:
        raise InputError(f"no test document has {length} tokens; prepare longer ones")
    tokens = files.tokens(long[0], 0, length)

    layer = trained.model.memory_layers[0]
    gate = trained.parameters[f"layers.{layer}.gate_bias"]
    heads = np.sort(np.argsort(gate)[-NUM_HEADS:])
    # A layer's input does not depend on its own keys. So with the kernel of the
    # queries in place of that of the keys, the layer stores its queries.
    swapped = trained.parameters | {
        f"layers.{layer}.key_kernel": trained.parameters[f"layers.{layer}.query_kernel"]
    }
    keys = stored_keys(trained, trained.parameters, tokens)[:NUM_KEYS, heads]
    queries = stored_keys(trained, swapped, tokens)[NUM_KEYS:, heads]
    about = {
        "document": files.documents[long[0]].name,
        "fingerprint": files.fingerprint,
        "layer": layer,
        "heads": heads.tolist(),
    }
    return {
        "keys": np.rint(keys * UNIT).astype(np.int8),
        "queries": np.rint(queries * UNIT).astype(np.int8),
        "unit": np.array(UNIT),
        "about": np.array(json.dumps(about)),
    }


def main() -> int:
    """Returns the exit status: 0, or 2 where something is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=Path, required=True, help="the data set")
    parser.add_argument("--output", type=Path, required=True, help="the .npz file")
    parser.add_argument(
        "--parameters",
        type=Path,
        default=PARAMETERS,
        help="a trained model with memory (default: the demo's)",
    )
    args = parser.parse_args()
    try:
        trained = parameter_files.load(args.parameters)
        if not trained.model.memory_layers:
            raise InputError(f"the model of {args.parameters} has no memory layer")
        files = open_split(args.tokens, "test")
        parameter_files.check_tokenizer(trained, files.tokenizer, args.tokens)
        arrays = export(trained, files)
        new = args.output.with_name(args.output.name + ".new")
        with new.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(new, args.output)
    except (InputError, TokenFileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {NUM_KEYS} keys, {NUM_QUERIES} queries, {arrays['about']}")
    return 0


_forward = jax.jit(model.forward, static_argnums=5)

if __name__ == "__main__":
    sys.exit(main())
