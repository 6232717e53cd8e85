"""Where the tests find notebooks and data, why chance decides nothing, how fast the widgets are, and how much memory it all takes."""
import multiprocessing.forkserver
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')  # two workers on two cores
os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ['MISAS_QUICK'] = '1'  # benchmarks run with smaller numbers: their times are not compared
os.environ.setdefault('MALLOC_MMAP_THRESHOLD_', str(4*2**20))  # glibc gives back at once what a large array held, ...
os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')  # ... and torch asks for large pages, which makes up for the time that takes
sys.path.insert(0, str(Path(__file__).parent))

LIMIT = 3*1024  # MB that a worker may hold together with the notebook it runs; the goal is 2500


@pytest.fixture(autouse=True)
def no_luck():
    "Every test starts from the same random state, alone or after others."
    import nbrun
    nbrun.same_luck()


@pytest.fixture(autouse=True, scope='module')
def tidy():
    "After a file of tests, its figures are closed, and what it held goes back to the system."
    yield
    import nbrun
    if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')
    nbrun.give_back()


# ---- in which order ----

LARGE = 'test_views.py', 'test_instances.py', 'test_maximise.py'  # take more than 1 GB for a moment


def pytest_collection_modifyitems(config, items):
    """Each worker begins with its share of the notebooks, then of the large tests, while it holds not much itself.
    (xdist hands out equal parts.)"""
    workers = getattr(config, 'workerinput', {}).get('workercount', 1)
    notebooks = [o for o in items if o.path.name == 'test_notebooks.py']
    large = [o for o in items if o.path.name in LARGE]
    others = [o for o in items if o not in {*notebooks, *large}]
    size = -(-len(others)//workers)
    shares = [notebooks[k::workers] + large[k::workers] + others[k*size:(k + 1)*size] for k in range(workers)]
    items[:] = [o for share in shares for o in share]


# ---- what the workers measured, told at the end ----

MEASURED = []  # of each worker: its name, times of the widgets, memory
LARGEST = {}  # test -> MB that this process held at most while it ran
WORKERS = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))


def shared():
    "MB of a worker that others hold, too: all map the same libraries, which the machine holds once."
    import nbrun
    return nbrun.memory('RssFile')*(WORKERS - 1)//WORKERS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    "What a process held at most is counted for each test, so that one sees which is large."
    import nbrun
    nbrun.forget_peak()
    try: return (yield)
    finally: LARGEST[item.nodeid] = nbrun.memory('VmHWM') - shared()


def measured():
    "What this process measured."
    import nbrun
    server = nbrun.memory('RssAnon', multiprocessing.forkserver._forkserver._forkserver_pid)  # libraries are shared with this process
    alone = max(LARGEST.values(), default=0) + server
    return dict(worker=os.environ.get('PYTEST_XDIST_WORKER', 'pytest'), alone=alone, largest=LARGEST,
                notebooks={name: (ours - shared(), its) for name, (ours, its) in nbrun.PEAKS.items()},
                times=getattr(sys.modules.get('test_widgets'), 'TIMES', {}),
                imports=getattr(sys.modules.get('test_imports'), 'TOLD', {}))


def peak(one):
    "MB that a worker held at most, alone or together with a notebook."
    return max(one['alone'], *(ours + its for ours, its in one['notebooks'].values()), 0)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    is_worker = hasattr(session.config, 'workeroutput')
    if is_worker: session.config.workeroutput['measured'] = measured()
    elif not session.config.getoption('numprocesses', None): MEASURED.append(measured())
    if not is_worker and any(peak(one) > LIMIT for one in MEASURED): session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error): MEASURED.extend(o for o in [getattr(node, 'workeroutput', {}).get('measured')] if o)


def pytest_terminal_summary(terminalreporter):
    tell_times(terminalreporter)
    tell_imports(terminalreporter)
    tell_memory(terminalreporter)


def tell_imports(terminalreporter):
    "How much processor time imports take."
    found = {what: seconds for one in MEASURED for what, seconds in one['imports'].items()}
    if found: terminalreporter.section('imports, seconds of processor time')
    for what, seconds in found.items(): terminalreporter.write_line(f'{what:60} {seconds:.2f}')


def tell_times(terminalreporter):
    "How fast the widgets answered, from key press to painted picture."
    times = {what: sorted(ms) for one in MEASURED for what, ms in one['times'].items()}
    if times: terminalreporter.section('from key press to painted picture, ms')
    for what, ms in times.items():
        terminalreporter.write_line(f'{what:60} median {ms[len(ms)//2]:5.0f}   90 % {ms[int(.9*(len(ms) - 1))]:5.0f}   ({len(ms)} presses)')


def tell_memory(terminalreporter):
    "What the workers held at most, and the largest notebooks."
    terminalreporter.section('memory, MB')
    for one in MEASURED:
        told = f'{one["worker"]}: {peak(one)} at most with what ran in it, {one["alone"]} without notebooks'
        terminalreporter.write_line(told if peak(one) <= LIMIT else f'{told}: MORE THAN {LIMIT}', red=peak(one) > LIMIT)
    notebooks = [(its, name) for one in MEASURED for name, (_, its) in one['notebooks'].items()]
    tests = [(its, name) for one in MEASURED for name, its in one['largest'].items()]
    for several in (notebooks, tests):
        for its, name in sorted(several, reverse=True)[:8]: terminalreporter.write_line(f'{its:6} {name}')
