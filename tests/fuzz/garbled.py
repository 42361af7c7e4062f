"""Sound texts made unsound: tokens lost, doubled, swapped, replaced; JSON changed in one place."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle
from typing import Any

from damages import damaged

LARGEST = 1 << 16  # characters of an input
DEEP = (10, 41, 300, 1500, 10_000)

_TOKEN = re.compile(r"[A-Za-z_]+|[0-9]+|[ \t]+|.", re.DOTALL)
# What a parser that is not careful trips over.
WORDS = (
    *'% %0 %1 %999999999 : , ( ) { } [ ] < > = * - @ # " \\ // ! ? / . \n \t \0 \r'.split(" "),
    *"of return graph forward: backward: update: constant dense< opaque< @c0 keys<".split(),
    *"key<fry> frozenset{ slice( P( policy. prng< Precision. None True inf nan -nan".split(),
    *"0 -0 -1 1e9 1e-9 1e9999 0x1 0x7fc00001 1.5 1.0+infj 2147483648 9223372036854775808".split(),
    *"f32[] f32[2]* f32[99999999999] f32[999999999999999999,999999999999999999]".split(),
    *"f32[2/x:4] f32<host>[8] i4[3] f8_e4m3fn[2] c64[] bool[1] u64[2]".split(),
    "\u0663",  # a digit, to `str.isdecimal` and to `\d`
    "\u00b2",  # one to `str.isdigit` alone
    "\u2028",
    "\u202e",
    "\x1b[31m",
    "\udcff",
    "\U0001f600",
    "e\u0301",
    "9" * 20,
    "9" * 400,
    "9" * 5000,
    "x" * 5000,
    "resources {\n",
)
# JSON as raw text: what `json.dumps` would not write, or not as deep.
RAW = (
    *"null true false 0 -1 1.5 1e999 -1e999 NaN Infinity -Infinity 1e400 [] {} [[]] [null]".split(),
    *'"" "x" "\\u0000" "\\ud800" "../x" "1" {"a":1} {"kind":"other"} ["last",0,0] [1,2,3]'.split(),
    *(["9" * 19, "9" * 400, "9" * 5000, "-" + "9" * 400, "0." + "3" * 5000]),
    *("[" * n + "]" * n for n in DEEP),
    *('{"a":' * n + "1" + "}" * n for n in DEEP),
    *('["keep",0,0,' * n + '["last",0,0]' + "]" * n for n in DEEP),
    *('{"bodies":[' * n + '],"stretches":[]}' * n for n in DEEP),
    *('{"kind":"list","of":[' * n + "]}" * n for n in DEEP),
)


def garbled(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of `seeds`, changed in a few places; JSON most often stays JSON."""
    seed = rng.choice(seeds)
    if seed[:1] == b"{" and rng.random() < 0.7:
        return altered(seed, rng)
    if rng.random() < 0.15:
        return damaged(seed, rng)[:LARGEST] if seed else b""
    found = list(tokens(seed))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        _change(found, tokens(rng.choice(seeds)), rng)
    return "".join(found)[:LARGEST].encode("utf-8", "surrogateescape")


@cache
def tokens(seed: bytes) -> tuple[str, ...]:
    """Words, numbers, blanks and single characters of a text."""
    return tuple(_TOKEN.findall(seed.decode("utf-8", "surrogateescape")))


def _change(found: list[str], other: Sequence[str], rng: random.Random) -> None:
    """Change tokens in one place; `other` is a text to take some from."""
    at = rng.randrange(len(found) + 1)
    end = min(len(found), at + rng.choice((1, 1, 1, 2, 4, 16, 64)))
    match rng.randrange(9):
        case 0:
            del found[at:end]
        case 1:
            found[at:at] = found[at:end]
        case 2 if found:
            i, k = (rng.randrange(len(found)) for _ in range(2))
            found[i], found[k] = found[k], found[i]
        case 3:
            found[at:end] = [rng.choice(WORDS)]
        case 4:
            found[at:at] = [rng.choice(WORDS)]
        case 5:
            start = rng.randrange(len(other) + 1)
            found[at:end] = other[start : start + rng.choice((1, 4, 16, 64, 400))]
        case 6:
            count = rng.choice((*DEEP, 3, 3, 3))
            found[at:at] = ["".join(found[at:end])[: LARGEST // count] * count]
        case 7:
            _renumber(found, rng)
        case _:
            del found[at:]


def _renumber(found: list[str], rng: random.Random) -> None:
    """Give one number the value of another, or a wild one."""
    places = [i for i, token in enumerate(found) if token.isdecimal()]
    if places:
        wild = ("0", "1", "-1", "1.5", "2147483648", "9" * 18, "9" * 19, "9" * 5000, "1e999", "nan")
        others = [found[rng.choice(places)], rng.choice(wild)]
        found[rng.choice(places)] = rng.choice(others)


_MARK = "\ue000"


def altered(seed: bytes, rng: random.Random) -> bytes:
    """JSON with some values replaced, removed, doubled or put elsewhere; what follows it stays."""
    text = seed.decode("utf-8", "surrogateescape")
    data, end = json.JSONDecoder().raw_decode(text)
    raws = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = rng.choice([*_places(data), ([data], 0)])
        match rng.randrange(5):
            case 0 | 1:
                holder[key] = _MARK
                raws.append(rng.choice(RAW))
            case 2:
                del holder[key]
            case 3 if isinstance(holder, list):
                text_of_it = json.dumps(holder[key])
                count = min(rng.choice((1, 2, 1000)), LARGEST // len(text_of_it))
                holder[key:key] = [json.loads(text_of_it) for _ in range(count)]
            case 3:
                holder[rng.choice(("", "extra", "a" * 300))] = holder[key]
            case _:
                other, name = rng.choice([*_places(data), (holder, key)])
                # Through text, so that no value comes to hold itself.
                holder[key] = json.loads(json.dumps(other[name]))
    found, *parts = json.dumps(data, ensure_ascii=False).split(f'"{_MARK}"')
    for raw, part in zip(cycle(raws or ["0"]), parts, strict=False):
        found += raw + part
        if len(found) > LARGEST:
            break
    return (found[:LARGEST] + text[end:]).encode("utf-8", "surrogateescape")


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or dict in JSON, with each of its positions or keys."""
    if isinstance(data, list | dict):
        for key, value in enumerate(data) if isinstance(data, list) else data.items():
            yield data, key
            yield from _places(value)
