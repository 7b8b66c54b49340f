"""Inputs that once made a parser fail, by target; kept as examples."""

FOUND: dict[str, list[bytes]] = {}
