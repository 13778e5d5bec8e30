"""Python runs this at the start of each process that finds it in PYTHONPATH: see skew.py."""

import os
from pathlib import Path

import skew

if path := os.environ.get(skew.FILE_VARIABLE):
    skew.install(skew.Skew(Path(path)))
