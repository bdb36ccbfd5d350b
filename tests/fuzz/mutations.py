"""Ways to spoil a file: JSON values, names, bytes. Everything is drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np

Rng = np.random.Generator

NAMES = (
    *(
        "",
        " ",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "~",
        "-rf",
        "--help",
        "%s%n",
        "$x^2$",
        "$",
        "{0}",
        "a:b",
    ),
    *(
        "\x00",
        "a\x00b",
        "line\nbreak",
        "\r",
        "\t",
        "\x1b[31mred\x1b[0m",
        "\x7f",
        "\x85",
        "\u2028",
        "\u202eabc",
        "\ufeff",
    ),
    *("中文", "ñ", "\U0001f600", "e\u0301", "\ud800", "a\udcffb", "<script>alert(1)</script>", "&rho;", "'\"`;|"),
    *(
        "con",
        "NaN",
        "null",
        "true",
        "1e999",
        "shard-000000",
        "x" * 300,
        "y" * 5000,
        "file://x",
        "s3://b/k",
        "http://u:p@h/",
    ),
)
NUMBERS = (
    *(
        0,
        -1,
        1,
        2,
        255,
        256,
        2**15,
        2**31 - 1,
        2**31,
        -(2**31) - 1,
        2**32,
        2**53 + 1,
        2**63 - 1,
        2**63,
        -(2**63),
        2**64,
    ),
    *(
        10**30,
        10**400,
        0.5,
        -0.5,
        1e-300,
        1e300,
        float("nan"),
        float("inf"),
        float("-inf"),
        1.0,
        -0.0,
        36_000_000_000_000,
    ),
)
VALUES = (None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": []}}, *NUMBERS, *NAMES)


def choose(rng: Rng, items: Any) -> Any:
    """Draw one of the items."""
    return items[int(rng.integers(len(items)))]


def mutate(rng: Rng, values: Any, times: int | None = None) -> Any:
    """Return a copy of JSON values with one to three of them dropped, replaced, repeated, cut or moved."""
    root = {"": copy.deepcopy(values)}
    for _ in range(times or int(rng.integers(1, 4))):
        places = [(holder, key) for holder, key in _places(root)]
        holder, key = choose(rng, places)
        _spoil(rng, holder, key)
        if "" not in root:
            root[""] = None
    return root[""]


def mutate_json(rng: Rng, values: Any) -> bytes:
    """Return the text of JSON values that were spoiled: as values, as text, or as bytes."""
    kind = rng.random()
    if kind < 0.75:
        return to_json(mutate(rng, values))
    text = to_json(values)
    if kind < 0.85:
        return mutate_bytes(rng, text)
    return choose(
        rng,
        (
            b"",
            b"\n",
            b"null",
            b"[]",
            b"{}",
            b"0",
            b'"text"',
            b"\xef\xbb\xbf" + text,
            text.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass"),
            text[:-1],
            text + text,
            text + b"\x00",
            b"[" * 100_000,
            b'{"a":' * 5000 + b"1" + b"}" * 5000,
            b"[" * 500 + b"]" * 500,
            text.replace(b'"', b"'"),
            text.replace(b"{", b'{"a": 1, "a": 2, ', 1),
            _twice(text),
            text.replace(b":", b': -Infinity, "x":', 1),
            text.replace(b'"', b'"\xff', 1),
            b"1" * 5000,
            b" " * 20_000_000,
            b"[" + b"[]," * 3_000_000 + b"0]",
            b"[" + b'{"":0},' * 2_000_000 + b"0]",
        ),
    )


def mutate_bytes(rng: Rng, content: bytes) -> bytes:
    """Return bytes of which some are changed, cut out, repeated, or put in."""
    spoiled = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        if not spoiled:
            break
        at = int(rng.integers(len(spoiled)))
        length = int(min(rng.geometric(0.2), len(spoiled) - at))
        kind = rng.integers(5)
        if kind == 0:
            spoiled[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            spoiled[at : at + length] = rng.bytes(length)
        elif kind == 2:
            spoiled[at : at + length] = choose(rng, (b"\x00", b"\xff", b"\x7f")) * length
        elif kind == 3:
            del spoiled[at : at + (length if rng.random() < 0.8 else len(spoiled))]
        else:
            spoiled[at:at] = spoiled[at : at + length]
    return bytes(spoiled)


def to_json(values: Any) -> bytes:
    """Return a JSON text, in which NaN and lone surrogates are possible."""
    return json.dumps(values).encode("utf-8", "surrogatepass")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (holder, key) of every value below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, item in items:
        found.append((value, key))
        found.extend(_places(item))
    return found


def _spoil(rng: Rng, holder: Any, key: Any) -> None:
    value = holder[key]
    kind = int(rng.integers(8))
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(value, list):
        del value[int(rng.integers(len(value) + 1)) :]
    elif kind == 2 and isinstance(value, list) and value:
        value.extend(copy.deepcopy(value) * int(choose(rng, (1, 2, 50))))
    elif kind == 3 and isinstance(value, dict):
        value[choose(rng, NAMES)] = choose(rng, VALUES)
    elif kind == 4 and isinstance(holder, dict):
        holder[choose(rng, NAMES)] = holder.pop(key)
    elif kind == 5 and isinstance(value, int | float) and not isinstance(value, bool):
        holder[key] = choose(rng, (*NUMBERS, value + 1, value - 1, -value, str(value), [value]))
    elif kind == 6 and isinstance(value, str):
        holder[key] = choose(rng, (*NAMES, value + choose(rng, NAMES), value[:-1], value.upper()))
    else:
        holder[key] = choose(rng, VALUES)


def _twice(text: bytes) -> bytes:
    """Return an object in which all keys occur twice."""
    return text[:-1] + b", " + text[1:] if text.startswith(b"{") and len(text) > 2 else text
