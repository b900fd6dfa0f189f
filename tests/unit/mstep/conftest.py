"""Makes the table of random samples importable as ``mstep_cases``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
