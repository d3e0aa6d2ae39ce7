"""Cases of memory, search and memory attention.

Most have one row, one head and one dimension. The key of a pair is then a number,
the query is 1, and a score is the key itself.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from memorizing_conformance.cases.case import Case
from memorizing_conformance.strategies import grid_array

Step = tuple[bool, Sequence[float]]


def line(
    name: str,
    rule: str,
    says: str,
    steps: Sequence[Step],
    slots: Sequence[Sequence[int]] | None,
    *,
    memory_size: int,
    top_k: int,
    segment_length: int = 2,
    query: float = 1.0,
    scale: float = 1.0,
    output: Sequence[float] | None = None,
    values: Sequence[Sequence[float]] | None = None,
    **settings: Any,
) -> Case:
    """Returns a case of one row, head and dimension.

    Args:
      name: of the folder.
      rule: what it is about.
      says: the case in one sentence.
      steps: for each segment whether it starts a document, and its keys; what is
        missing to `segment_length` is padding, which holds 100.
      slots: what each segment's queries must find, worked by hand.
      memory_size: slots.
      top_k: neighbors.
      segment_length: positions.
      query: of every position.
      scale: attention_scale.
      output: what each segment's queries must read, worked by hand.
      values: if they are not the keys.
      settings: further ones of case.json.
    """
    shape = (len(steps), 1, segment_length, 1, 1)
    keys = np.full(shape, 100, np.float32)
    own_values = keys.copy()
    for step, (_, numbers) in enumerate(steps):
        keys[step, 0, : len(numbers), 0, 0] = numbers
        own_values[step, 0, : len(numbers), 0, 0] = (values or [n for _, n in steps])[
            step
        ]
    by_hand = {}
    if slots is not None:
        each = np.array(slots)[:, None, None, None, :]
        by_hand["slots"] = np.repeat(each, segment_length, axis=2)
    if output is not None:
        each = np.array(output, np.float64)[:, None, None, None, None]
        by_hand["memory_output"] = np.repeat(each, segment_length, axis=2)
    return Case(
        "memory",
        name,
        (rule,),
        says,
        {
            "sizes": {
                "batch": 1,
                "memory_size": memory_size,
                "num_heads": 1,
                "head_dim": 1,
                "top_k": top_k,
            },
            **settings,
        },
        {
            "start_of_document": np.array([[start] for start, _ in steps]),
            "num_tokens": np.array([[len(numbers)] for _, numbers in steps]),
            "queries": np.full(shape, query, np.float32),
            "keys": keys,
            "values": own_values,
            "attention_scale": np.array([scale], np.float32),
        },
        by_hand,
    )


def drawn(
    name: str,
    rule: str,
    says: str,
    seed: int,
    *,
    kind: str = "grid",
    starts: Sequence[Sequence[bool]] = ((True, True), (False,) * 2, (False,) * 2),
    lengths: Sequence[Sequence[int]] = ((5, 5), (5, 5), (5, 5)),
    **settings: Any,
) -> Case:
    """Returns a case of several rows and heads, with numbers on the grid of 1/8."""
    rng = np.random.default_rng(seed)
    shape = (len(starts), 2, 5, 3, 4)
    sizes = {"batch": 2, "memory_size": 8, "num_heads": 3, "head_dim": 4, "top_k": 6}
    return Case(
        "memory",
        name,
        (rule,),
        says,
        {"sizes": sizes, **settings},
        {
            "start_of_document": np.array(starts),
            "num_tokens": np.array(lengths),
            "queries": grid_array(rng, shape),
            "keys": grid_array(rng, shape, kind),
            "values": grid_array(rng, shape),
            "attention_scale": np.array([0.5, -1.0, 2.0], np.float32),
        },
    )


LN3 = math.log(3)
NAN = math.nan

CASES = (
    line(
        "newest_pairs_stay",
        "MEM-1",
        "Pairs 0 to 3 come to a memory of 3: pairs 1 to 3 stay.",
        [(True, [1, 2]), (False, [3, 4]), (False, [])],
        [[-1, -1, -1], [1, 0, -1], [0, 2, 1]],
        memory_size=3,
        top_k=3,
    ),
    line(
        "slots_wrap",
        "MEM-2",
        "Pair t is in slot t mod 5, also where a segment crosses the end.",
        [(True, [1, 2, 3]), (False, [4, 5, 6]), (False, [7]), (False, [])],
        [[-1] * 5, [2, 1, 0, -1, -1], [0, 4, 3, 2, 1], [1, 0, 4, 3, 2]],
        memory_size=5,
        top_k=5,
        segment_length=3,
    ),
    line(
        "a_segment_exceeds_the_memory",
        "MEM-2",
        "Of pairs 0 to 4 a memory of 3 keeps 2, 3 and 4, in slots 2, 0 and 1.",
        [(True, [1, 2, 3, 4, 5]), (False, [6]), (False, [])],
        [[-1] * 3, [1, 0, 2], [2, 1, 0]],
        memory_size=3,
        top_k=3,
        segment_length=5,
        long_segments=True,
    ),
    line(
        "zero_is_a_key",
        "MEM-3",
        "Zero keys are found; slots never written are not, though -1 is less than 0.",
        [(True, [0, -1]), (False, [])],
        [[-1, -1, -1], [0, 1, -1]],
        memory_size=4,
        top_k=3,
    ),
    line(
        "not_itself",
        "MEM-4",
        "A segment finds what was there before it.",
        [(True, [5, 6]), (False, [7, 8]), (False, [])],
        [[-1, -1], [1, 0], [3, 2]],
        memory_size=4,
        top_k=2,
    ),
    line(
        "reset_before_search",
        "MEM-5",
        "A document's first segment finds nothing, and counting starts anew.",
        [(True, [1, 2]), (True, [3]), (False, [])],
        [[-1, -1, -1], [-1, -1, -1], [0, -1, -1]],
        memory_size=3,
        top_k=3,
    ),
    drawn(
        "rows_reset_apart",
        "MEM-5",
        "Row 1 starts a document where row 0 goes on.",
        1,
        starts=((True, True), (False, True), (False, False)),
    ),
    line(
        "padding_stays_out",
        "MEM-6",
        "One of two positions is real, then none.",
        [(True, [1]), (False, []), (False, [2]), (False, [])],
        [[-1, -1], [0, -1], [0, -1], [1, 0]],
        memory_size=3,
        top_k=2,
    ),
    drawn(
        "rows_of_unequal_length",
        "MEM-6",
        "Rows insert as many pairs as they have.",
        2,
        lengths=((5, 2), (0, 4), (3, 5)),
    ),
    line(
        "bfloat16_nearest_even",
        "MEM-10",
        "1 + 2**-8 is stored as 1, and 1 + 3 * 2**-8 as 1 + 2**-6.",
        [(True, [1 + 2**-8, 1 + 3 * 2**-8]), (False, [])],
        [[-1], [1]],
        memory_size=3,
        top_k=1,
        output=[0, 1 + 2**-6],
        memory_dtype="bfloat16",
    ),
    line(
        "float32_is_exact",
        "MEM-10",
        "Keys that differ by 2**-20 are told apart.",
        [(True, [1, 1 + 2**-20]), (False, [])],
        [[-1], [1]],
        memory_size=3,
        top_k=1,
        output=[0, 1 + 2**-20],
    ),
    line(
        "nan_is_hidden",
        "MEM-11",
        "NaN, as key and as value, is gone after a reset.",
        [(False, [NAN, NAN]), (True, [3]), (False, [])],
        None,
        memory_size=3,
        top_k=2,
    ),
    line(
        "ties_to_the_lower_slot",
        "KNN-1",
        "Scores 1, 2, 2, 2: slots 1 and 2.",
        [(True, [1, 2]), (False, [2, 2]), (False, [])],
        [[-1, -1], [1, 0], [1, 2]],
        memory_size=5,
        top_k=2,
    ),
    drawn("many_ties", "KNN-1", "Keys of -1, 0 and 1.", 3, kind="ties"),
    drawn(
        "near_duplicates", "KNN-1", "Keys an eighth apart.", 4, kind="near_duplicates"
    ),
    line(
        "a_tail_of_nothing",
        "KNN-2",
        "Two of four neighbors exist; each takes half the weight.",
        [(True, [-3, -3]), (False, [])],
        [[-1] * 4, [0, 1, -1, -1]],
        memory_size=5,
        top_k=4,
        values=[[4, 8], []],
        output=[0, 6],
    ),
    line(
        "a_bad_key_is_refused",
        "KNN-3",
        "The second segment's search could find a key that is infinite.",
        [(True, [1, math.inf]), (False, [])],
        None,
        memory_size=3,
        top_k=2,
        refused={"array": "keys", "index": [0, 1, 0, 0]},
    ),
    drawn(
        "two_buckets_of_two",
        "BKT-1",
        "8 slots in 4 buckets with one winner each, so 4 of 6 at most are found.",
        5,
        bucketing=[4, 1],
    ),
    line(
        "a_bucket_loses",
        "BKT-1",
        "Keys 4 3 2 1 in 2 buckets: slots 0 and 2 share one, 1 and 3 the other.",
        [(True, [4, 3]), (False, [2, 1]), (False, [])],
        [[-1, -1, -1], [0, 1, -1], [0, 1, -1]],
        memory_size=4,
        top_k=3,
        bucketing=[2, 1],
    ),
    line(
        "a_softmax_of_two",
        "GATE-1",
        "Logits 0 and ln 3 weigh the values 0 and 8 by 1/4 and 3/4.",
        [(True, [0, 1]), (False, [])],
        [[-1, -1], [1, 0]],
        memory_size=3,
        top_k=2,
        query=LN3,
        values=[[0, 8], []],
        output=[0, 6],
    ),
    line(
        "nothing_reads_zero",
        "GATE-2",
        "An empty memory is read as zero.",
        [(True, [1, 2]), (True, [3, 4])],
        [[-1, -1], [-1, -1]],
        memory_size=3,
        top_k=2,
        output=[0, 0],
    ),
    line(
        "the_scale_has_no_sign",
        "QKN-3",
        "The scale -2 makes ln 3 of ln(3)/2, and leaves the order alone.",
        [(True, [0, 1]), (False, [])],
        [[-1, -1], [1, 0]],
        memory_size=3,
        top_k=2,
        query=LN3 / 2,
        scale=-2.0,
        values=[[0, 8], []],
        output=[0, 6],
    ),
    drawn(
        "everything_together",
        "ORD-1",
        "Resets, padding and wraps.",
        6,
        starts=((True, True), (False, False), (False, True), (False, False)),
        lengths=((5, 5), (4, 5), (5, 3), (2, 5)),
    ),
)
