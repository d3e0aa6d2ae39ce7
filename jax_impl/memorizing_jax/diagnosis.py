"""What a run was reading when its numbers ceased to be finite."""

from typing import Any, Final, NoReturn

import numpy as np

from memorizing_data.row_reader import RowReader
from memorizing_data.token_files import TokenFiles
from memorizing_jax.checkpoint import Checkpoints
from memorizing_jax.errors import InputError, NotFiniteError
from memorizing_jax.run_folder import RunFolder
from memorizing_jax.train_step import Run

_MOST_NAMED: Final = 8  # A sentence is for reading; the checkpoint's record has all.


def save_and_raise(
    error: NotFiniteError,
    token_files: TokenFiles,
    reader: RowReader,
    run: Run,
    position: dict[str, Any],
    folder: RunFolder,
) -> NoReturn:
    """Saves a run for those who want to know why, and ends it with a sentence.

    Args:
      error: which step, and in which rows.
      token_files: what `reader` reads.
      reader: of all rows, as it stood before that step.
      run: as it is now, perhaps some steps later.
      position: of its reader.
      folder: where to save, beside the checkpoints that `--resume` looks at.

    Raises:
      InputError: always.
    """
    batch = next(reader)
    rows = error.rows or np.flatnonzero(batch.num_tokens).tolist()
    at_hand = [
        {
            "row": row,
            "document": int(batch.document[row]),
            "name": token_files.documents[batch.document[row]].name,
            "first_token": int(batch.position[row]),
            "num_tokens": int(batch.num_tokens[row]),
        }
        for row in rows
    ]
    now = int(run.step)
    record = {"step": error.step, "rows": at_hand, "position": position}
    try:
        with Checkpoints(folder.not_finite, kept=1) as checkpoints:
            checkpoints.save(run, record)
        where = f"the state after step {now} is in {folder.not_finite / str(now)}"
    except InputError as failure:
        where = f"and nothing could be saved of it: {failure}"
    what = "the loss is" if error.rows else "gradients are"
    named = "; ".join(map(_name, at_hand[:_MOST_NAMED]))
    more = len(at_hand) - _MOST_NAMED
    raise InputError(
        f"{what} not finite in step {error.step}, which read {named}"
        f"{f'; and {more} more' if more > 0 else ''}. Earlier checkpoints are intact, "
        f"and {where}, where --resume does not look; begin again with a lower "
        "--learning-rate or longer --warmup-steps, or look into those documents"
    ) from None


def _name(at_hand: dict[str, Any]) -> str:
    first, count = at_hand["first_token"], at_hand["num_tokens"]
    return (
        f"in row {at_hand['row']} tokens {first} to {first + count - 1} of document "
        f"{at_hand['document']} ({at_hand['name']})"
    )
