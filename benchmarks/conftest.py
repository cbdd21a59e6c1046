"""Let pytest import the benchmarks, which import their neighbour `record` as scripts do."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
