"""Settings for every test and every notebook that pytest runs."""

import os

import pytest
from nbval.plugin import IPyNbCell

# Progress bars are for readers. The notebooks' kernels inherit this.
os.environ["TQDM_DISABLE"] = "1"
# Threads that wait do so without work: two workers of pytest share the cores.
os.environ["OMP_WAIT_POLICY"] = "passive"
# Another rounding than that of the stored outputs, as on another machine: what the chapters print
# must not depend on it. (MKL's, where PyTorch has it; elsewhere the machine itself is another one.)
os.environ["MKL_CBWR"] = "COMPATIBLE"
# glibc gives freed memory back to the system, and each step of a training asks for it anew.
os.environ["MALLOC_TRIM_THRESHOLD_"] = str(2**30)
os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**25)  # the most that glibc takes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chapters first: begun last, a long one would run alone while the other worker waits."""
    items.sort(key=lambda item: not isinstance(item, IPyNbCell))
