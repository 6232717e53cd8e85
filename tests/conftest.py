"""Where the tests find notebooks and data, how they leave no figures behind, and why chance decides nothing."""
import os
import random
import sys
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')  # two workers on two cores
os.environ.setdefault('MPLBACKEND', 'Agg')
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_luck():
    "Every test starts from the same random state, alone or after others: networks with random weights are the same in each run."
    import numpy as np
    import torch
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


TIMES = {}  # what a widget test measured -> milliseconds, from all workers


def pytest_sessionfinish(session):
    measured = getattr(sys.modules.get('test_widgets'), 'TIMES', {})
    if hasattr(session.config, 'workeroutput'): session.config.workeroutput['times'] = measured
    else: TIMES.update(measured)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error): TIMES.update(getattr(node, 'workeroutput', {}).get('times', {}))


def pytest_terminal_summary(terminalreporter):
    "How fast the widgets answered, from key press to painted picture."
    if TIMES: terminalreporter.section('from key press to painted picture, ms')
    for what, ms in TIMES.items():
        ms = sorted(ms)
        terminalreporter.write_line(f'{what:60} median {ms[len(ms)//2]:5.0f}   90 % {ms[int(.9*(len(ms) - 1))]:5.0f}   ({len(ms)} presses)')
