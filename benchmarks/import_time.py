"""What `import adntn` costs over `import torch`: medians of fresh processes, as JSON.

python benchmarks/import_time.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from adntn.checkpoint import writing

RESULTS = Path(__file__).parent / "results" / "import_time.json"
CODE = "import time, torch; t = time.perf_counter(); import adntn; print(time.perf_counter() - t)"


def main(rounds: int = 9) -> None:
    command = [sys.executable, "-c", CODE]
    seconds = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(rounds)]
    result = {
        "seconds_over_torch": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "rounds": rounds,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with writing(RESULTS) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
