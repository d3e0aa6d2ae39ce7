"""What else to write down while a run goes on; none of it changes the run."""

import dataclasses
import importlib.util
import math

from memorizing_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Watch:
    """Ways to watch a run beside its lines of metrics; asked for anew each time."""

    tensorboard: bool = False
    """Write the metrics for TensorBoard too, to OUTPUT/tensorboard."""
    profile: int = 0
    """Steps to trace with JAX's profiler, after three to warm up, to OUTPUT/profile."""
    peak_tflops: float | None = None
    """Peak of a device in bfloat16 TFLOP/s; known of TPU v4 to v6e, A100 to H200."""

    def __post_init__(self) -> None:
        """Refuses what cannot be done, one sentence each.

        Raises:
          InputError: a number is impossible, or a package is missing.
        """
        if self.profile < 0:
            raise InputError(f"profile is {self.profile}, must be 0 or more steps")
        if self.peak_tflops is not None and not 0.0 < self.peak_tflops < math.inf:
            raise InputError(f"peak_tflops is {self.peak_tflops}, must be above 0")
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise InputError(
                "--tensorboard needs the package tensorboardX, which is not installed; "
                "run pip install 'memorizing-transformers[tensorboard]'"
            )
