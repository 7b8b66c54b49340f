"""Inputs that once made a parser fail, by target; kept as examples."""

_NINE_TIMES = [
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)
]
FOUND: dict[str, list[bytes]] = {
    # All of it came back in the message.
    "url": [b"[" * 100_000 + b"s3://bucket/folder/name"],
    # Aliases that a plain YAML loader expands: showing the run did not end.
    "config.yaml": [b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(_NINE_TIMES)],
}
