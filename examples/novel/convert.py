#!/usr/bin/env python3
"""Reads one novel out of the Debian package r-cran-janeaustenr (see README.md beside this file)."""

import struct
import sys
import zlib


def novels(raw):
    """Every zlib stream of the lazy-load database that holds a vector of UTF-8 strings."""
    at = raw.find(b"x\x9c")
    while at >= 0:
        try:
            content = zlib.decompressobj().decompress(raw[at:])
        except zlib.error:
            content = b""
        if content[:1] == b"X" and content[18:23] == b"UTF-8":
            yield content[23:]
        at = raw.find(b"x\x9c", at + 1)


def lines(content):
    kind, count = struct.unpack(">ii", content[:8])
    assert kind == 16, "not a vector of strings"
    at = 8
    for _ in range(count):
        _, length = struct.unpack(">ii", content[at : at + 8])
        yield content[at + 8 : at + 8 + length].decode()
        at += 8 + length


def main():
    database, title, out = sys.argv[1:]
    with open(database, "rb") as file:
        raw = file.read()
    for content in novels(raw):
        text = "\n".join(lines(content)) + "\n"
        if text.startswith(title):
            with open(out, "w", encoding="utf-8") as file:
                file.write(text)
            return
    sys.exit(f"{title} is not in {database}")


main()
