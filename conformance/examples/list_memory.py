"""A library of somebody else: a memory made of Python lists, one head at a time.

It has conventions of its own, as outside code does: no arrays, no rows, and what
it finds are the pairs themselves rather than slots.
"""

import math


class ListMemory:
    """The newest pairs of one row and head, in a list used as a ring."""

    def __init__(self, size):
        self.size = size
        self.pairs = []
        self.total = 0

    def clear(self):
        """Forgets everything."""
        self.pairs, self.total = [], 0

    def remember(self, key, value):
        """Puts a pair where the oldest one was, once the list is full."""
        if len(self.pairs) < self.size:
            self.pairs.append((key, value))
        else:
            self.pairs[self.total % self.size] = (key, value)
        self.total += 1

    def nearest(self, query, count):
        """Returns places in the list, best first; equal scores in list order."""
        scores = [sum(map(float.__mul__, key, query)) for key, _ in self.pairs]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        return order[:count]

    def read(self, query, count, sharpness):
        """Returns the mean of the nearest values, weighed by a softmax."""
        places = self.nearest(query, count)
        if not places:
            return [0.0] * len(query)
        logits = [
            sharpness * sum(map(float.__mul__, self.pairs[place][0], query))
            for place in places
        ]
        weights = [math.exp(logit - max(logits)) for logit in logits]
        values = [self.pairs[place][1] for place in places]
        return [
            sum(map(float.__mul__, weights, column)) / sum(weights)
            for column in zip(*values, strict=True)
        ]
