import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, torch
{before}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
start = faults()
for _ in range(8):
    torch.ones(2**24)
print(faults() - start)
"""


def page_faults(before: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PAGES.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is for glibc")
def test_arrays_are_made_from_freed_memory():
    keep = "from pgnn_geo.app.memory import keep_freed_memory; assert keep_freed_memory()"
    usual = page_faults("")
    assert usual >= 8 * 2**26 / 2**21  # pages of 2 MiB, which some systems give for large arrays
    assert page_faults(keep) < usual / 4
