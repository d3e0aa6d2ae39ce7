"""From the matrices of published files to the parameters of PRE-10.

Published matrices are `[out, in]`, with all heads in one axis.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from memorizing_jax import llama_parameters
from memorizing_jax.errors import InputError
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.parameters import Parameters

Dtype = Literal["float32", "bfloat16"]


def arrange(
    read: Callable[[str], np.ndarray], config: LlamaConfig, dtype: Dtype
) -> Parameters:
    """Returns all parameters, converted to `dtype` one by one.

    Widening changes no number; to bfloat16 they are rounded to nearest even.

    Args:
      read: returns the published array of a parameter; raises InputError if there is
        none.
      config: sizes of the model.
      dtype: of the result.

    Raises:
      InputError: names the parameter that is missing, misshapen or not finite.
    """
    return {
        name: _arranged(name, read(name), shape, dtype)
        for name, shape in llama_parameters.shapes(config).items()
    }


def _arranged(
    name: str, found: np.ndarray, shape: tuple[int, ...], dtype: Dtype
) -> jax.Array:
    kind = name.rpartition(".")[2]
    if kind.endswith("_kernel"):
        # Whatever is read stands last, and the heads belong to it in output_kernel.
        inputs = shape[:2] if kind == "output_kernel" else shape[:1]
        published: tuple[int, ...] = (
            int(np.prod(shape[len(inputs) :])),
            int(np.prod(inputs)),
        )
    else:
        published = shape
    if found.shape != published:
        raise InputError(
            f"the array of {name} has shape {found.shape}, and the model's settings "
            f"ask for {published}; was either altered?"
        )
    if kind.endswith("_kernel"):
        found = found.T.reshape(shape)
    array = jnp.array(found, dtype)
    # Numbers of altered files are often not finite, and spread over all they touch.
    if not bool(jnp.isfinite(array).all()):
        raise InputError(f"the array of {name} is not finite; was the file altered?")
    return array
