"""The position bias of local attention: the whole table of LOC-5."""

import numpy as np

from memorizing_reference import positions

# Distances that share a bucket, bucket 16 first; bucket 31 has no end.
WIDE = [(16, 18), (19, 20), (21, 23), (24, 26), (27, 30), (31, 34), (35, 39), (40, 45)]
WIDE += [(46, 51), (52, 58), (59, 66), (67, 76), (77, 86), (87, 98), (99, 112)]


def test_every_bucket():
    assert positions.bucket(np.arange(16)).tolist() == list(range(16))
    for bucket, (first, last) in enumerate(WIDE, start=16):
        assert set(positions.bucket(np.arange(first, last + 1)).tolist()) == {bucket}
    far = np.array([113, 114, 127, 128, 129, 1000, 10**9])
    assert set(positions.bucket(far).tolist()) == {31}


def test_buckets_never_decrease():
    assert (np.diff(positions.bucket(np.arange(2000))) >= 0).all()


def test_bias_by_head_and_distance():
    relative_bias = np.arange(96.0).reshape(3, 32)
    # 4 queries see 5 local positions; a cache of one shifts distances by one.
    distance = np.arange(1, 5)[:, None] - np.arange(5)[None, :]
    found = positions.bias(relative_bias, distance)
    assert found.shape == (4, 3, 5)
    for query, head, column in np.ndindex(4, 3, 5):
        if distance[query, column] >= 0:
            expected = relative_bias[head, distance[query, column]]
            assert found[query, head, column] == expected
