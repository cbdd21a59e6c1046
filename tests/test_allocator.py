import os
import subprocess
import sys

import pytest

LOOP = """
import resource, sys
import numpy as np
from retailtag.allocator import keep_freed_memory
done = keep_freed_memory() if sys.argv[1] == "keep" else False
np.ones(2**22).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    np.ones(2**22).sum()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _run(mode, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", LOOP, mode],
        capture_output=True,
        text=True,
        check=True,
        env={**clean, **environment},
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_blocks_are_reused_without_page_faults():
    kept, faults = _run("keep")
    if not kept:
        pytest.skip("this system's C library is not glibc")
    _, usual = _run("usual")
    assert faults < usual / 20


def test_a_tuned_environment_is_left_alone():
    assert _run("keep", MALLOC_ARENA_MAX="2")[0] is False
