"""Checks golden vectors with the standard library alone: python read_vectors.py DIR."""

import ast
import json
import pathlib
import struct
import sys
import zipfile

CODES = {"<f4": "f", "<i8": "q", "|b1": "?"}


def read_arrays(path):
    """Returns (shape, numbers in C order) by name: a .npz is a zip of .npy files."""
    arrays = {}
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            data = file.read(name)
            (length,) = struct.unpack_from("<H", data, 8)
            header = ast.literal_eval(data[10 : 10 + length].decode())
            array = memoryview(data)[10 + length :].cast(CODES[header["descr"]])
            arrays[name.removesuffix(".npy")] = header["shape"], list(array)
    return arrays


def slots_of(sizes, arrays):
    """Replays a case of one row, head and dimension."""
    (steps, _, length, _, _), keys = arrays["keys"]
    size, top_k, pairs, slots = sizes["memory_size"], sizes["top_k"], [], []
    for step in range(steps):
        pairs = [] if arrays["start_of_document"][1][step] else pairs
        newest = list(enumerate(pairs))[-size:]
        here = slice(step * length, (step + 1) * length)
        for query in arrays["queries"][1][here]:
            order = sorted((-query * key, t % size) for t, key in newest)
            found = [slot for _, slot in order][:top_k]
            slots += found + [-1] * (top_k - len(found))
        pairs += keys[here][: arrays["num_tokens"][1][step]]
    return slots


checked = 0
for path in sorted(pathlib.Path(sys.argv[1]).glob("memory/*/case.json")):
    settings = json.loads(path.read_text())["settings"]
    sizes, special = settings["sizes"], {"bucketing", "memory_dtype", "refused"}
    if sizes["batch"] == sizes["num_heads"] == 1 and not special & set(settings):
        arrays = read_arrays(path.with_name("arrays.npz"))
        assert slots_of(sizes, arrays) == arrays["expected_slots"][1], path
        checked += 1
print(f"{checked} cases agree")
