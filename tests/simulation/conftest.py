"""Makes `tests.simulation` importable: pytest's importlib mode adds no folder to the path."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
