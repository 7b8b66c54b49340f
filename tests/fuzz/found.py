"""Inputs that once made a parser fail, by target; kept as examples."""

import io
import struct

import numpy as np
import tifffile


def _of_two_counts() -> bytes:
    """A TIFF that gives two numbers of samples per pixel."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((8, 8, 3), np.uint8), photometric="rgb", byteorder="<")
    one, two = (struct.pack("<HHI", 277, 3, count) for count in (1, 2))
    assert one in stream.getvalue()
    return stream.getvalue().replace(one, two)


_NINE_TIMES = [
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)
]
FOUND: dict[str, list[bytes]] = {
    # All of it came back in the message.
    "url": [b"[" * 100_000 + b"s3://bucket/folder/name"],
    # Planning the memory for it added a number to a tuple.
    "photograph.tiff": [_of_two_counts()],
    # Not too deep for the parser, but for what walked through it.
    "result": [b'{"a": ' + b"[" * 600 + b"]" * 600 + b"}"],
    # A number that JSON does not have was passed on.
    "attempts.jsonl": [b'{"attempt": NaN, "id": "00ff", "started": "2026-01-01", "workers": 1}\n'],
    "config.yaml": [
        # Aliases that a plain YAML loader expands: showing the run did not end.
        b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(_NINE_TIMES),
        # A lone surrogate reached the model card, which is written in UTF-8.
        b'{"model": {"size": "\\ud800"}}',
    ],
}
