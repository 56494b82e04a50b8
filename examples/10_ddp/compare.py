#!/usr/bin/env python3
"""Trains with and without kills, and compares (../novel/compare.py)."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "novel"))
from compare import compare  # noqa: E402

KILLS = (
    (0, 30, "op=all_reduce,phase=after_publish"),
    (2, 61, "op=commit,phase=after_prepare"),
    (1, 90, "op=all_reduce,phase=before_complete"),
)

if __name__ == "__main__":
    compare(HERE / "train.py", KILLS)
