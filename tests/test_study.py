"Studies that are killed, on clusters whose workers die, on full disks, and with bad input: what was done stays done, and what is read is whole."
import errno
import gc
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import cloudpickle
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from distributed import Client, LocalCluster
from PIL import Image

from misas.data.fingerprint import fingerprint
from misas.data.phantom import ThresholdModel, disc, short_axis_stack
from misas.data.sample import Sample
from misas.demo import demo_learner, demo_sample
from misas.models.adapt import as_model
from misas.models.function import FunctionModel
from misas.models.zoo import cardiac_net
from misas.study.archive import COLUMNS, Archive
from misas.study.compare import compare
from misas.study.diagnose import diagnose
from misas.study.study import Study
from misas.study.work import Work
from misas.transforms.base import from_function
from misas.transforms.intensity import Blur, Brightness, Contrast, Gamma, Noise
from misas.transforms.spatial import Rotation, Scale, Shear, Translation
from misas.transforms.voxels import Flip

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # or workers would have to import all this
CLASSES = 'background', 'disc'
QUIET = dict(progress=False)


def discs(n, size=12):
    "Noisy discs of different sizes, the same in every process."
    for i in range(n):
        rng = np.random.default_rng(i)
        s = disc((size, size), radius=rng.uniform(1.5, size/2.5), object=rng.uniform(.6, 1))
        yield s.replace(name=f'case {i}', image=s.image + rng.normal(scale=.05, size=s.image.shape))


def threshold(at=.5): return as_model(ThresholdModel(at), classes=CLASSES)


def many(folder):
    "A study of many small units."
    kinds = Rotation([-20, 0, 20]), Brightness([.7, 1, 1.5]), Blur([0, 1]), Noise([0, .1]), Gamma([.8, 1]), Contrast([.5, 1]), Shear([0, 10]), \
        Scale([.9, 1]), Translation([0, 2]), Flip()
    return Study(folder, {'low': threshold(.45), 'high': threshold(.6)}, list(kinds), metrics=('dice', 'precision'))


def few(folder, **kw): return Study(folder, **{**dict(models={'a': threshold()}, transforms=[Brightness([.5, 1]), Blur([0, 1])]), **kw})


N = 30  # cases of `many`: 600 units


def units(folder): return {p.relative_to(folder): p for p in Path(folder).glob('units/*/*/*.parquet')}
def parts(folder): return list(Path(folder).rglob('.*.part'))


def soon(true, seconds=60.):
    "Wait until something is true."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f'it is still not so after {seconds} s'
        time.sleep(.004)


def within(seconds, f):
    "What `f` returns; it fails rather than hangs."
    done = []
    def go():
        try: done.append((f(), None))
        except BaseException as e: done.append((None, e))
    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, f'it hangs: not done after {seconds} s'
    if done[0][1] is not None: raise done[0][1]
    return done[0][0]


def refused(make, *words, kind=(ValueError, TypeError, OSError, RuntimeError)):
    "`make()` raises one plain sentence in which all words occur."
    with pytest.raises(kind) as e: make()
    text = str(e.value)
    assert '\n' not in text.strip() and 10 < len(text) < 500, f'not one sentence: {text!r}'
    for word in words: assert re.search(rf'(?<!\w){re.escape(str(word))}(?!\w)', text), f'{word!r} is not named in: {text}'


# --- processes that are killed

@pytest.fixture(scope='session')
def forks():
    "Processes that start at once: misas is imported in their common parent."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['test_study'])
    with pytest.MonkeyPatch.context() as m:  # for the parent alone, which is started now
        m.setenv('PYTHONPATH', os.pathsep.join(sys.path))
        begin(context, abs, 0).join(60)
    return context


def begin(forks, work, *args):
    "Run `work` in a process group of its own."
    child = forks.Process(target=in_group, args=(work, *args))
    child.start()
    return child


def in_group(work, *args):
    os.setsid()
    torch.set_num_threads(1)
    work(*args)


def kill(child, group=True):
    "SIGKILL, and wait until it is dead."
    try: (os.killpg if group else os.kill)(child.pid, signal.SIGKILL)
    except ProcessLookupError: child.kill()  # not in its group yet, or through
    child.join(20)
    assert child.exitcode is not None


def run_many(folder, n_jobs): many(folder).run(discs(N), n_jobs=n_jobs, **QUIET)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "The files and the frame of a study that nothing happened to."
    study = many(tmp_path_factory.mktemp('undisturbed')/'s').run(discs(N), **QUIET)
    assert len(units(study.folder)) == 2*10*N and study.failures.empty
    return {k: p.read_bytes() for k, p in units(study.folder).items()}, study.frame


def only_whole(folder, files, seen):
    "All files that are visible are those of the undisturbed study, to the last byte; those in `seen` were looked at before."
    for k, p in units(folder).items():
        state = p.stat()
        if seen.get(k) != (state.st_ino, state.st_mtime_ns):
            assert p.read_bytes() == files[k], f'{k} differs'
            seen[k] = state.st_ino, state.st_mtime_ns
    return len(seen)


def same_in_the_end(folder, undisturbed):
    study = many(folder)
    assert study.frame.equals(undisturbed[1]) and study.failures.empty and not parts(folder) and not list(folder.glob('.run/*'))
    assert study.cases['sample'].tolist() == [f'case {i}' for i in range(N)]


def runs(folder):
    "How many runs have noted in the folder that they began."
    file = folder/'study.json'
    return len(json.loads(file.read_text()).get('runs', [])) if file.exists() else 0


def test_kill_20_times(tmp_path, forks, undisturbed):
    "Four at whatever moment, 14 while units are written by one process, 2 while two processes write (which live on for a while)."
    folder, luck, seen, done, halves = tmp_path/'s', random.Random(5), {}, [0], 0
    for k in range(20):
        by_two, begun = k in (3, 8), runs(folder)
        child = begin(forks, run_many, folder, 2 if by_two else 1)
        if k % 5 == 0: time.sleep(luck.uniform(0, .2))
        else:
            goal = done[-1] + luck.randint(1, 1 + (20*N - done[-1])//(2*(20 - k)))  # so that something is left for those to come
            soon(lambda: runs(folder) > begun and len(units(folder)) >= goal)  # not by those who live on
            time.sleep(luck.uniform(0, .02))
        assert child.is_alive(), 'it was through before it could be killed'
        kill(child, group=not by_two)
        halves += len(parts(folder)) > 0
        done.append(only_whole(folder, undisturbed[0], seen))
        if k in (4, 9, 14, 19):
            frame = Study(folder).frame
            assert len(frame) and not pd.merge(frame, undisturbed[1], how='left', on=COLUMNS, indicator=True)['_merge'].ne('both').any()
    growing = sum(a < b for a, b in zip(done, done[1:]))
    print(f'\n20 kills: {growing} while units were written, {halves} left half a file behind; units after each: {done[1:]}')
    assert growing >= 14 and done[-1] < 20*N
    many(folder).run(discs(N), **QUIET)
    same_in_the_end(folder, undisturbed)
    assert runs(folder) >= 16 + 1  # four were killed at whatever moment


# --- a cluster whose workers are killed

@pytest.fixture(scope='module')
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.CRITICAL) as cluster: yield cluster


@pytest.fixture(scope='module')
def client(cluster):
    with Client(cluster) as client: yield client


def test_cluster_finds_the_same(tmp_path, cluster, client):
    "By its client, by its address; both as in this process."
    here = few(tmp_path/'here').run(discs(12), **QUIET).frame
    for i, who in enumerate((client, cluster.scheduler_address)):
        study = few(tmp_path/f'{i}')
        within(60, lambda: study.run(discs(12), backend='dask', client=who, **QUIET))
        assert study.frame.equals(here) and study.failures.empty and study.settings['runs'][0]['backend'] == 'dask'


def test_kill_workers_of_a_cluster(tmp_path, cluster, client, undisturbed):
    "Five times, at random moments of one run, which goes on to the end."
    folder, luck, killed = tmp_path/'s', random.Random(1), []
    def killer():
        for k in range(5):
            goal = 20*N*k//6 + luck.randint(1, 20*N//6)
            soon(lambda: len(units(folder)) >= goal)
            living = [w.pid for w in cluster.workers.values() if w.pid]
            if living:
                os.kill(luck.choice(living), signal.SIGKILL)
                killed.append(len(units(folder)))
    thread = threading.Thread(target=killer, daemon=True)
    thread.start()
    within(120, lambda: many(folder).run(discs(N), backend='dask', client=client, **QUIET))
    thread.join(1)
    print(f'\nworkers killed when so many units were there: {killed}')
    assert len(killed) == 5 and killed[-1] < 20*N
    same_in_the_end(folder, undisturbed)


def really_bright(x):
    "Is it the bright case, rather than what a network is asked to find out whether it is steady?"
    return len(x) == 1 and x.max() > 5 and x.min() >= 0


class Deadly(ThresholdModel):
    "Kills its process when it sees something very bright."
    def forward(self, x):
        if really_bright(x): os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def test_a_case_that_kills_every_worker(tmp_path, cluster, client, monkeypatch):
    "It is named, and the others are done."
    told = []  # pytest.warns would lose warnings where a thread of the cluster leaves catch_warnings meanwhile
    monkeypatch.setattr('misas.study.study.warnings.warn', lambda text, *args, **kw: told.append(str(text)))
    cases = [s.replace(image=s.image*9) if i == 3 else s for i, s in enumerate(discs(10))]
    study = few(tmp_path/'s', models={'deadly': as_model(Deadly(.5), classes=CLASSES), 'fine': threshold()})
    old, cluster.scheduler.allowed_failures = cluster.scheduler.allowed_failures, 0
    try:
        within(120, lambda: study.run(cases, backend='dask', client=client, **QUIET))
    finally: cluster.scheduler.allowed_failures = old
    assert any('case 3: the process that worked on it died' in text for text in told)
    assert set(study.failures['sample']) == {'case 3'} and set(study.failures.model) == {'deadly'}
    left = few(tmp_path/'here', models={'deadly': threshold(), 'fine': threshold()}).run(cases, **QUIET).frame
    assert study.frame.equals(left[(left['sample'] != 'case 3') | (left.model == 'fine')].reset_index(drop=True))


def test_a_cluster_that_goes_away(tmp_path):
    "One sentence, and what was done is kept."
    folder, here = tmp_path/'s', few(tmp_path/'here').run(discs(60), **QUIET).frame
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=logging.CRITICAL) as cluster:
        def leave():
            soon(lambda: len(units(folder)) > 5)
            cluster.close(timeout=10)
        threading.Thread(target=leave, daemon=True).start()
        refused(lambda: within(60, lambda: few(folder).run(discs(60), backend='dask', client=cluster.scheduler_address, **QUIET)), 'cluster', 'gone', 'kept')
    assert 12 <= len(few(folder).frame) < len(here) and few(folder).run(discs(60), **QUIET).frame.equals(here)


# --- in two processes

class Full:
    "A model that finds the disk full after some predictions, in whatever process it is."
    __name__ = 'full'
    def __init__(self, n): self.left = n
    def __fingerprint__(self): return ()
    def __call__(self, x):
        import misas.data.files
        self.left -= 1
        if self.left == 0: misas.data.files.os = Disk()
        return (x[:, 0] > .5).astype(int)


class Disk:
    "The module os of a computer whose disk is full."
    fsync = staticmethod(os.fsync)
    def replace(self, a, b): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_two_processes(tmp_path):
    "The same as one, from a generator that stays in the thread that called; a full disk ends it, and it goes on from there."
    threads = set()
    def cases():
        for s in discs(24):
            threads.add(threading.get_ident())
            yield s
    model = lambda n: {'a': FunctionModel(Full(n), classes=CLASSES)}
    here = few(tmp_path/'here', models=model(-1)).run(discs(24), **QUIET).frame
    study = few(tmp_path/'s', models=model(12))
    refused(lambda: study.run(cases(), n_jobs=2, **QUIET), 'cannot be written', 'No space left on device', kind=OSError)
    before = study.frame
    assert 0 < len(before) < len(here)
    few(tmp_path/'s', models=model(-1)).run(cases(), n_jobs=2, **QUIET)  # takes away what the other process was writing when it was ended
    assert study.frame.equals(here) and study.failures.empty and threads == {threading.get_ident()}
    assert not parts(study.folder) and not list(study.folder.glob('.run/*'))


# --- trouble with files

@pytest.mark.parametrize('where', ['os.replace', 'pyarrow.parquet.write_table', 'os.fsync'])
def test_full_disk(tmp_path, monkeypatch, where):
    "The unit that found it is not there, those before are, and the next run does the rest."
    here, study, calls = few(tmp_path/'here').run(discs(6), **QUIET), few(tmp_path/'s').run(discs(1), **QUIET), []
    module, name = {'os': os, 'pyarrow.parquet': pq}[where.rpartition('.')[0]], where.rpartition('.')[2]
    working = getattr(module, name)
    def full(*args, **kw):
        calls.append(args)
        if len(calls) > 7: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return working(*args, **kw)
    monkeypatch.setattr(module, name, full)
    refused(lambda: study.run(discs(6), **QUIET), 'cannot be written', 'No space left on device', 'everything finished before is kept', kind=OSError)
    monkeypatch.undo()
    kept = study.frame
    assert 0 < len(kept) < len(here.frame) and kept.equals(here.frame.iloc[:len(kept)]) and not parts(study.folder)
    assert study.run(discs(6), **QUIET).frame.equals(here.frame) and study.failures.empty


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('a file')
    refused(lambda: few(tmp_path/'file'/'study').run(discs(2), **QUIET), 'study', kind=OSError)
    refused(lambda: few(tmp_path/'file').run(discs(2), **QUIET), 'file', kind=OSError)
    assert (tmp_path/'file').read_text() == 'a file'


def slowly(folder, flag):
    def cases():
        for i, s in enumerate(discs(6)):
            if i == 3: soon(flag.exists, 30)
            yield s
    few(folder).run(cases(), **QUIET)


def test_two_runs_at_once(tmp_path, forks):
    "The second is told, the first does not notice, and afterwards the folder is free."
    folder, flag = tmp_path/'s', tmp_path/'go on'
    child = begin(forks, slowly, folder, flag)
    try:
        soon(lambda: len(units(folder)) == 6)
        refused(lambda: few(folder).run(discs(6), **QUIET), folder, 'another run', kind=RuntimeError)
        assert len(Study(folder).frame) == 12                               # reading is always possible
        flag.touch()
        child.join(30)
        assert child.exitcode == 0
    finally: kill(child)
    here = few(tmp_path/'here').run(discs(6), **QUIET).frame
    assert few(folder).frame.equals(here) and few(folder).run(discs(6), **QUIET).frame.equals(here)


@pytest.fixture
def done(tmp_path):
    "A finished study; after the test its frame must be what it was."
    study = few(tmp_path/'done').run(discs(4), **QUIET)
    before = study.frame
    yield study
    assert Study(study.folder).frame.equals(before) and Study(study.folder).failures.empty


def fine(x): return (x[:, 0] > .5).astype(int)
def doubled(image, v): return image*v
def halved(image, v): return image/v


OTHERS = dict(
    metrics=(dict(metrics=('dice', 'iou')), ['metrics']),
    model=(dict(models={'a': FunctionModel(fine, classes=CLASSES)}), ['models.a.fingerprint', 'was', 'is']),
    classes=(dict(models={'a': as_model(ThresholdModel(.5), classes=('background', 'tumour'))}), ['models.a.classes', 'tumour']),
    option=(dict(models={'a': as_model(ThresholdModel(.7), classes=CLASSES)}), ['models.a.fingerprint']),
    values=(dict(transforms=[Brightness([.5, 1, 2])]), ['transforms.brightness', 'values']),
    reference=(dict(reference='prediction'), ['reference', 'labels', 'prediction']),
    space=(dict(space='original'), ['space', 'transformed', 'original']),
)


@pytest.mark.parametrize('kw, words', list(OTHERS.values()), ids=list(OTHERS))
def test_folder_of_another_study(done, kw, words): refused(lambda: few(done.folder, **kw), done.folder, 'another folder', *words, kind=ValueError)


def test_function_changed_under_its_name(tmp_path):
    make = lambda f: few(tmp_path/'s', transforms=[from_function(f, 'mine', [1, 2], 1)])
    make(doubled).run(discs(2), **QUIET)
    make(doubled)
    refused(lambda: make(halved), 'transforms.mine.code')
    refused(lambda: few(tmp_path/'t', transforms=[from_function(lambda image, v: image*v, 'mine', [1, 2], 1)]), 'mine', 'without a name', 'def')
    assert not (tmp_path/'t').exists()


def test_more_can_be_added(done):
    "Other models and transforms are no other study; the frame keeps what it had."
    before = done.frame
    more = few(done.folder, models={'b': threshold(.7)}, transforms=[Blur([0, 1]), Gamma([.5, 1])]).run(discs(4), **QUIET)
    assert set(more.frame.model) == {'a', 'b'} and more.frame[more.frame.model == 'a'].reset_index(drop=True).equals(before)
    for p in units(done.folder).values():
        if p.parts[-3] == 'b': p.unlink()
    settings = json.loads((done.folder/'study.json').read_text())
    assert list(settings['models']) == ['a', 'b'] and len(settings['runs']) == 2


@pytest.mark.parametrize('text, words', [
    (None, ['study.json', 'missing']), ('{"misas study": 1, "met', ['study.json', 'damaged']), ('\xff\xfe', ['study.json', 'damaged']), ('{"name": "other"}', ['study.json', 'misas']),
    ('[1, 2]', ['study.json', 'misas']), ('{"misas study": 99}', ['later version'])], ids=['missing', 'cut', 'binary', 'other', 'list', 'later'])
def test_study_json(done, text, words):
    file = done.folder/'study.json'
    good = file.read_bytes()
    if text is None: file.unlink()
    else: file.write_bytes(text.encode('latin1'))
    try:
        for open_it in (lambda: Study(done.folder), lambda: few(done.folder), lambda: done.run(discs(4), **QUIET)): refused(open_it, done.folder.name, *words, kind=ValueError)
    finally: file.write_bytes(good)


@pytest.mark.parametrize('damage', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'not Parquet', lambda b: b[:60] + bytes(len(b) - 120) + b[-60:]],
                         ids=['half', 'empty', 'text', 'zeros'])
def test_damaged_unit(done, damage):
    "It is named; deleting it and running again mends it."
    file = units(done.folder)[Path('units/a/blur/case 2.parquet')]
    file.write_bytes(damage(file.read_bytes()))
    refused(lambda: Study(done.folder).frame, 'case 2.parquet', 'damaged', 'delete', kind=ValueError)
    file.unlink()
    done.run(discs(4), **QUIET)


@pytest.mark.parametrize('name', ['cases', 'failures'])
def test_damaged_case_file(done, name):
    file = done.folder/name/'case 1.json'
    old = file.read_bytes() if file.exists() else None
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"sample": ')
    refused(lambda: done.cases if name == 'cases' else done.failures, 'case 1.json', 'damaged', kind=ValueError)
    if name == 'cases': refused(lambda: done.run(discs(4), **QUIET), 'case 1.json', 'damaged', kind=ValueError)
    if old is None: file.unlink()
    else: file.write_bytes(old)


# --- bad arguments and bad samples

ARGUMENTS = dict(
    n_jobs_zero=(dict(n_jobs=0), ['n_jobs', '0']), n_jobs_negative=(dict(n_jobs=-1), ['n_jobs', '-1']), n_jobs_fraction=(dict(n_jobs=1.5), ['n_jobs', '1.5']),
    n_jobs_true=(dict(n_jobs=True), ['n_jobs']), n_jobs_none=(dict(n_jobs=None), ['n_jobs']), n_jobs_text=(dict(n_jobs='2'), ['n_jobs']),
    backend=(dict(backend='ray'), ['backend', 'ray', 'loky', 'dask']), backend_none=(dict(backend=None), ['backend']),
    client_without_dask=(dict(client='tcp://1.2.3.4:8786'), ['client', 'dask']), client_number=(dict(backend='dask', client=3), ['client']),
    client_address=(dict(backend='dask', client='nowhere://x'), ['client', 'nowhere']), threads=(dict(threads=0), ['threads', '0']),
    timeout_zero=(dict(timeout=0), ['timeout', '0']), timeout_text=(dict(timeout='1 h'), ['timeout', '1 h']), timeout_nan=(dict(timeout=np.nan), ['timeout', 'nan']),
    timeout_true=(dict(timeout=True), ['timeout']), load=(dict(load='nifti'), ['load', 'str']))


@pytest.mark.parametrize('kw, words', list(ARGUMENTS.values()), ids=list(ARGUMENTS))
def test_wrong_arguments_of_run(done, kw, words):
    before = (done.folder/'study.json').read_bytes()
    refused(lambda: done.run(discs(6), **{**QUIET, **kw}), *words)
    assert len(units(done.folder)) == 8
    if set(kw) != {'backend', 'client'}: assert (done.folder/'study.json').read_bytes() == before


@pytest.mark.parametrize('kw, words', [
    (dict(models=[]), ['models', 'empty']), (dict(models={}), ['models', 'empty']), (dict(transforms=[]), ['transforms', 'empty']),
    (dict(models=[threshold(), threshold(.6)]), ['models', 'ThresholdModel']), (dict(transforms=[Blur(), Blur([0, 1])]), ['transforms', 'blur']),
    (dict(models={'a': 3}), ['int']), (dict(transforms=['blur']), ['transform']), (dict(metrics=[]), ['metrics']), (dict(metrics='disc'), ['metrics', 'disc']),
    (dict(reference='truth'), ['reference', 'truth']), (dict(space='mine'), ['space', 'mine']), (dict(models=None), ['models']), (dict(transforms=None), ['transforms'])])
def test_wrong_arguments_of_study(tmp_path, kw, words):
    refused(lambda: few(tmp_path/'s', **kw), *words)
    assert not (tmp_path/'s').exists()


def test_opened_for_reading(done):
    refused(lambda: Study(done.folder).run(discs(4), **QUIET), 'reading', 'models', 'transforms')
    refused(lambda: Study(done.folder.parent/'nothing'), 'nothing', 'no study')
    refused(lambda: Study(done.folder.parent/'nothing').frame, 'nothing', 'no study')


def of_names(*names): return [s.replace(name=n) for s, n in zip(discs(len(names)), names)]


@pytest.mark.parametrize('samples, words', [
    ([], ['samples', 'empty']), (3, ['samples', 'int']), ([None], ['samples', 'NoneType', '0']), ([dict(labels=1)], ['image', 'labels']), ('no/such/folder', ['no/such/folder']),
    ('no.csv', ['no.csv']), (of_names('a', 'b', 'a'), ["'a'", 'names']), (of_names('a', 'b', 'A'), ["'A'", 'names']), (iter(of_names('a', 'b', 'a')), ["'a'", 'names'])],
    ids=['empty', 'number', 'none', 'no_image', 'folder', 'manifest', 'twice', 'case', 'twice_in_a_generator'])
def test_wrong_samples(done, samples, words):
    refused(lambda: done.run(samples, **QUIET), *words)
    for p in [*units(done.folder).values(), *done.folder.glob('cases/*.json')]:
        if 'case' not in p.stem: p.unlink()  # those before the generator failed are kept


def test_manifest_with_missing_files(done):
    table = done.folder.parent/'list.csv'
    for s in discs(2): np.save(done.folder.parent/f'{s.name}.npy', s.image)
    table.write_text('image,labels\ncase 0.npy,\ncase 1.npy,\ngone 1.npy,\ngone 2.npy,\n')
    refused(lambda: done.run(table, **QUIET), 'list.csv', '2 files', 'gone 1.npy', kind=FileNotFoundError)
    table.write_text('picture\ncase 0.npy\n')
    refused(lambda: done.run(table, **QUIET), 'list.csv', 'image', 'picture')
    table.write_text('image\ncase 0.npy\n""\n')
    refused(lambda: done.run(str(table), **QUIET), 'list.csv', 'line 3')
    assert len(units(done.folder)) == 8


@pytest.mark.parametrize('as_item', [lambda s: s, lambda s: (s.image, s.labels)], ids=['sample', 'arrays'])
def test_samples_changed_under_their_names(tmp_path, as_item):
    study = few(tmp_path/'s').run([as_item(s) for s in discs(3)], **QUIET)
    before = study.frame
    changed = [s.replace(image=s.image*2) if s.name == 'case 1' else s for s in discs(3)]
    with pytest.warns(UserWarning, match="1 of 3 cases are not what they were .*'case 1'"): study.run([as_item(s) for s in changed], **QUIET)
    after, fresh = study.frame, few(tmp_path/'fresh').run([as_item(s) for s in changed], **QUIET).frame
    assert after.equals(fresh) and after[after['sample'] != 'case 1'].equals(before[before['sample'] != 'case 1'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        study.run([as_item(s) for s in changed], **QUIET)                     # and that was it
        if type(as_item(changed[0])) is tuple:                                # the same data in another form are no other data
            study.run([Sample(s.image, s.labels, name=s.name) for s in changed], **QUIET)


def test_names_that_are_no_file_names(tmp_path):
    names = ['a/b', 'a:b', 'a_b', '..', 'x'*300, '\u4e2d'*300, '2\u00b2', 'caf\u00e9', ' ', 'a\nb', 'con.', '*[a]?']
    study = few(tmp_path/'s', models={'net/1': threshold(), '': threshold()}).run(of_names(*names), **QUIET)
    assert set(study.frame['sample']) == set(names) == set(study.cases['sample']) and set(study.frame.model) == {'net/1', ''} and study.failures.empty
    assert study.run(of_names(*names), **QUIET).frame.equals(study.frame)


# --- what fails, and what is said of it

def hang(x):
    if really_bright(x): time.sleep(60)
    return (x[:, 0] > .5).astype(int)


def choke(x):
    if really_bright(x): raise RuntimeError('too bright for me\nand more lines')
    return (x[:, 0] > .5).astype(int)


@pytest.mark.parametrize('f, reason', [(hang, 'took longer than 0.3 s'), (choke, 'too bright for me')], ids=['hangs', 'raises'])
def test_model_fails(tmp_path, f, reason):
    "The case and its reason are listed, the others are done; mended, it is done too and struck off the list."
    cases = [s.replace(image=s.image*9) if i == 1 else s for i, s in enumerate(discs(4))]
    study = few(tmp_path/'s', models={'f': FunctionModel(f, classes=CLASSES), 'a': threshold()})
    with pytest.warns(UserWarning, match='1 of 4 cases failed'): study.run(cases, timeout=.3, **QUIET)
    [row] = study.failures.to_dict('records')
    assert (row['sample'], row['model'], row['transform']) == ('case 1', 'f', '') and row['reason'].endswith(reason) and '\n' not in row['reason']
    assert study.frame.groupby('model')['sample'].nunique().to_dict() == {'a': 4, 'f': 3}
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0) and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        started = time.monotonic()
        study.run(cases, timeout=.3, retry=False, **QUIET)
        assert time.monotonic() - started < .3 and len(study.failures) == 1
        few(study.folder, models={'b': threshold(.4)}, transforms=[Blur([0, 1])]).run(cases, **QUIET)
        assert study.failures.to_dict('records') == [row]                  # another model does not know
        with pytest.MonkeyPatch.context() as m:
            m.setattr(study.models['f'], 'f', fine)
            study.run(cases, **QUIET)
    assert study.failures.empty and study.frame.groupby('model')['sample'].nunique().to_dict() == {'a': 4, 'b': 4, 'f': 4}


def test_killed_before_it_was_struck_off(done):
    "A failure of a unit that is there is none any more."
    done.archive.write_failures('case 1', [dict(sample='case 1', model='a', transform='blur', reason='long ago')])
    assert done.run(discs(4), **QUIET).failures.empty


def test_without_labels(tmp_path):
    cases = [s.replace(labels=None) if i == 1 else s for i, s in enumerate(discs(3))]
    study = few(tmp_path/'s')
    with pytest.warns(UserWarning, match='1 of 3 cases failed.*labels'): study.run(cases, **QUIET)
    assert set(study.failures['sample']) == {'case 1'} and study.frame['sample'].nunique() == 2
    own = few(tmp_path/'t', reference='prediction').run(cases, **QUIET)
    assert own.failures.empty and own.frame['sample'].nunique() == 3


def test_files_that_cannot_be_read(tmp_path):
    for s in discs(3): Image.fromarray((s.image[0]*200).clip(0).astype(np.uint8)).save(tmp_path/f'{s.name}.png')
    (tmp_path/'case 1.png').write_text('no picture')
    study = few(tmp_path/'s', reference='prediction')
    with pytest.warns(UserWarning, match='case 1'): study.run([tmp_path/f'case {i}.png' for i in range(3)], **QUIET)
    assert study.failures[['sample', 'model', 'transform']].values.tolist() == [['case 1', '', '']] and study.frame['sample'].nunique() == 2
    assert 'case 1.png' in study.failures.reason[0]


def test_error_in_a_generator(tmp_path):
    "What came before is kept."
    def cases():
        yield from discs(3)
        raise OSError('the drive is gone')
    study = few(tmp_path/'s')
    with pytest.raises(OSError, match='the drive is gone'): study.run(cases(), **QUIET)
    assert study.frame['sample'].nunique() == 3 and study.run(discs(3), **QUIET).frame['sample'].nunique() == 3


# --- memory

@pytest.mark.parametrize('n_jobs', [1, 2])
def test_a_generator_is_not_kept(tmp_path, n_jobs):
    "Of 300 samples only a few are there at a time, in this process and for two others."
    alive, most = [0], [0]
    def gone(): alive[0] -= 1
    def cases():
        for s in discs(300, 8):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            weakref.finalize(s, gone)
            yield s
            del s
    gc.collect()
    study = few(tmp_path/'s', transforms=[Brightness([.5, 1])]).run(cases(), n_jobs=n_jobs, **QUIET)
    gc.collect()
    print(f'\nn_jobs={n_jobs}: at most {most[0]} of 300 samples were there at a time')
    assert study.frame['sample'].nunique() == 300 and most[0] <= (3 if n_jobs == 1 else 4 + 4) and alive[0] == 0


# --- what a study asks of the disk

def counted(monkeypatch, root, *names):
    "Counts of calls of functions of `os` about what lies in a folder, by name. (Pools and clusters of other tests tidy up in threads.)"
    calls = dict.fromkeys(names, 0)
    def count(name):
        f = getattr(os, name)
        def g(path='.', *args, **kw):
            calls[name] += str(path).startswith(str(root))
            return f(path, *args, **kw)
        monkeypatch.setattr(os, name, g)
    for name in names: count(name)
    return calls


@pytest.mark.parametrize('n', [5, 25])
def test_a_finished_study_is_not_looked_through(tmp_path, monkeypatch, n):
    "To see that nothing has changed, folders are asked, not files: as many for 25 cases as for 5."
    study = few(tmp_path/'s').run(discs(n), **QUIET)
    for folder in (tmp_path/'s'/'units').rglob('*'):
        if folder.is_dir(): os.utime(folder, (1e9, 1e9))  # it has been at rest for long
    for folder in (tmp_path/'s'/'units', tmp_path/'s'/'units'/'a'): os.utime(folder, (1e9, 1e9))
    before = study.frame
    calls = counted(monkeypatch, tmp_path, 'stat', 'listdir', 'scandir')
    assert study.frame.equals(before) and study.frame.equals(before)
    print(f'\n{n} cases: {calls} for two looks at {len(before)} scores')
    assert calls['stat'] <= 2*(4 + 2) and calls['listdir'] == calls['scandir'] == 0  # units, a model, two transforms, study.json


def test_units_of_another_process_are_seen(tmp_path):
    "At once, also when they come so fast that the clock of the folder does not move; and so is one that goes."
    study = few(tmp_path/'s', transforms=[Brightness([.5, 1])]).run(discs(2), **QUIET)
    reader, place = Study(study.folder), next(iter(units(study.folder).values()))
    good = place.read_bytes()
    assert reader.frame['sample'].nunique() == 2
    for i in range(30):
        name, clock = f'other {i}', place.parent.stat().st_mtime_ns
        rows = [('a', name, 'brightness', v, '', 'disc', 'dice', .5) for v in (.5, 1.)]
        Archive(study.folder).write('a', 'brightness', name, rows)
        if i % 2: os.utime(place.parent, ns=(clock, clock))
        assert reader.frame['sample'].nunique() == 3 + i
    place.unlink()
    assert reader.frame['sample'].nunique() == 31
    place.write_bytes(good)
    assert reader.frame['sample'].nunique() == 32


@pytest.mark.parametrize('n_jobs', [1, 2])
def test_a_case_is_asked_once_what_is_missing(tmp_path, monkeypatch, n_jobs):
    asked, ask = [], Work.missing
    monkeypatch.setattr(Work, 'missing', lambda self, case, *args: [asked.append(case), ask(self, case, *args)][1])
    few(tmp_path/'s').run(discs(6), n_jobs=n_jobs, **QUIET)
    assert sorted(asked) == [f'case {i}' for i in range(6)]
    few(tmp_path/'s').run(discs(6), **QUIET)
    assert len(asked) == 12


# --- folders of an earlier version

def as_format_2(folder):
    "Change a study into what was written before 29 November: other fingerprints, and marks instead of identities. The settings."
    settings = json.loads((folder/'study.json').read_text())
    assert settings['misas study'] == 3
    settings['misas study'] = 2
    for one in [one for k in ('models', 'metrics', 'transforms') for one in settings[k].values() if isinstance(one, dict)]:
        one |= {k: 'before' for k in ('fingerprint', 'code', 'function') if one.get(k)}
    for path in (folder/'cases').glob('*.json'):
        case = json.loads(path.read_text())
        path.write_text(json.dumps(dict(sample=case['sample'], mark='before', info=case['info'])))
    (folder/'study.json').write_text(json.dumps(settings))
    return settings


def as_format_1(folder):
    "Change study.json into what misas 1.0.0a1 wrote."
    file = folder/'study.json'
    settings = as_format_2(folder)
    assert settings['misas study'] == 2
    settings['misas study'] = 1
    for name, metric in settings['metrics'].items():
        if isinstance(metric, dict):
            settings['metrics'][name] = dict(function=metric['function'], lower_is_better=metric['better'] == 'lower')
    for t in settings['transforms'].values():
        scale = t.pop('scale')
        t['words'] = scale if isinstance(scale, dict) else None
    file.write_text(json.dumps(settings))
    return file


def missed(prediction, truth): return float((truth & ~prediction).sum())
missed.lower_is_better = True


@pytest.mark.parametrize('version', [1, 2])
def test_folder_of_an_earlier_version(tmp_path, version):
    "It is read, and gone on with; then it is a folder of today."
    kw = dict(transforms=[Brightness([.5, 1]), Flip()], metrics=('dice', missed))
    study = few(tmp_path/'s', **kw).run(discs(3), **QUIET)
    told, before = str(study.summary(metric='missed', drop=5)), study.frame
    file = study.folder/'study.json'
    (as_format_1 if version == 1 else as_format_2)(study.folder)
    old = Study(study.folder)
    assert old.frame.equals(before) and str(old.summary(metric='missed', drop=5)) == told and old.metrics['missed'].better == 'lower'
    assert json.loads(file.read_text())['misas study'] == version                    # reading changes nothing
    with pytest.warns(UserWarning, match='an earlier misas noted less of what they are'): more = few(study.folder, **kw)
    with pytest.warns(UserWarning, match='3 of 4 cases were studied by an earlier misas'): more.run(discs(4), **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        few(study.folder, **kw).run(discs(4), **QUIET)                         # said once
    assert more.frame['sample'].nunique() == 4 and json.loads(file.read_text())['misas study'] == 3
    refused(lambda: few(study.folder, **{**kw, 'metrics': ('dice', fine)}), 'metrics', kind=ValueError)


# --- metrics of one's own

def test_own_metric_is_explored(tmp_path):
    "A study keeps the function, and hands it on; read again without it, the scores are there, and pictures say what they need."
    from misas.metrics.metric import Metric
    from misas.widgets.explore import explore
    own = Metric('missed', missed, better='lower', unit='voxels')
    cases = list(discs(4))
    study = few(tmp_path/'s', metrics=[own, 'dice']).run(cases, **QUIET)
    whole = explore(study, progress=False)
    whole.open_cell(len(whole.maps.places) - 1)
    shown = whole.gallery
    j = list(shown.metrics).index('missed')
    assert shown.metrics['missed'] is own and np.isfinite(shown.table[:, 0, j]).all() and shown.table[:, 0, j].max() > 0
    read = Study(study.folder)
    assert read.metrics['missed'].unit == 'voxels' and read.rank(own).equals(study.rank('missed'))
    assert explore(read).heat.map['cells'] == whole.heat.map['cells']
    refused(lambda: explore(read, value=1), 'model', kind=ValueError)


# --- classes that overlap

REGIONS, LEVELS = ('ET', 'TC', 'WT'), (.7, .5, .3)  # discs that lie in each other; each is where the image is brighter than its level


class Nested(torch.nn.Module):
    "A mask for each region, from logits of +-5."
    def __init__(self, levels=LEVELS):
        super().__init__()
        self.register_buffer('levels', torch.tensor(levels)[:, None, None])
    def forward(self, x): return torch.where(x > self.levels, 5., -5.)


def nested(levels=LEVELS, **kw): return as_model(Nested(levels), activation='sigmoid', classes=REGIONS, **kw)


def rings(n):
    "Images of three nested discs, the smallest somewhat off the middle."
    rows, columns = np.indices((40, 44)) - np.array([19.5, 21.5])[:, None, None]
    for i in range(n):
        far = np.hypot(rows - 1, columns)
        masks = np.stack([far < radius + .2*i for radius in (4, 8, 12)])
        image = .2 + .2*masks.sum(0) + np.random.default_rng(i).normal(scale=.01, size=far.shape)
        yield Sample(image[None], masks, classes=REGIONS, spacing=1., name=f'case {i}')


@pytest.mark.parametrize('n_jobs', [1, 2])
def test_overlapping_classes(tmp_path, n_jobs):
    "A study of two models, one of which sees WT too small, has three classes, no background, and the right numbers."
    samples = list(rings(12))
    models = {'right': nested(), 'small': nested((.7, .5, .5))}
    kinds = [Flip(), Brightness([.5, 1, 1.2])]
    study = Study(tmp_path/'s', models, kinds, metrics=('dice', 'volume_difference')).run(samples, n_jobs=n_jobs, **QUIET)
    assert study.failures.empty and list(dict.fromkeys(study.frame['class'])) == list(REGIONS)
    scores = study.frame.set_index(['model', 'sample', 'transform', 'value', 'class', 'metric']).score
    assert (scores['right'].xs('flip', level='transform').xs('dice', level='metric') == 1).all()
    assert scores['right'].xs(.5, level='value').xs('dice', level='metric').unstack()['ET'].eq(0).all()   # .8/2 is below .7
    for s in samples:  # what is taken for WT is TC
        truth, seen = s.labels[2].sum(), s.labels[1].sum()
        assert np.isclose(scores['small', s.name, 'flip', 0., 'WT', 'dice'], 2*seen/(truth + seen))
        assert np.isclose(scores['small', s.name, 'flip', 0., 'WT', 'volume_difference'], (int(seen) - int(truth))/100)
    found = compare(study, ('right', 'small'), metric='dice', cluster=None, n=200).frame
    unchanged = found[found['transform'] == 'unchanged'].set_index('class')
    assert unchanged.better.to_dict() == {'ET': '', 'TC': '', 'WT': 'right'} and (unchanged.difference[['ET', 'TC']] == 0).all()
    assert str(Study(study.folder).summary()) == str(study.summary()) and 'WT: 1.00 unchanged' in str(study.summary(model='right'))


def test_overlapping_classes_are_diagnosed():
    "A model that was trained on grey values to 255, and one that looks at the upper half only."
    samples, quick = list(rings(8)), dict(borne=[Rotation([-20, 0, 20]), Flip()], **QUIET)
    bright = diagnose(nested([255*(o - .2)/.6 for o in LEVELS], name='bytes'), samples, **quick)
    assert bright.verdict == 'fits after a change: intensity range 0 to 255' and bright.classes['class'].tolist() == list(REGIONS)
    assert (bright.tolerance.unchanged > .9).all() and set(bright.tolerance['class']) == set(REGIONS)
    class Upper(Nested):
        def forward(self, x):
            y = super().forward(x)
            return torch.where(torch.arange(x.shape[2])[:, None] < x.shape[2]//2, y, torch.full_like(y, -5.))
    off = [s.replace(image=np.roll(s.image, 10, 1), labels=np.roll(s.labels, 10, 1)) for s in samples]  # in the lower half
    upper = diagnose(as_model(Upper(), activation='sigmoid', classes=REGIONS, name='upper'), off, **quick)
    assert upper.verdict.startswith('fits after a change: dihedral') or upper.verdict.startswith('fits after a change: flip')
    assert upper.best.helps and upper.best.gain > .3 and (upper.frame.cuts[upper.frame['transform'] == 'dihedral'] == False).all()  # noqa: E712


# --- models that are sent to other processes

def picture(): return next(discs(1, 32))
def stack(): return short_axis_stack((32, 32, 4), spacing=(6., 6., 20.))
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 1))


def torch_model(): return as_model(net(), classes=('background', 'a', 'b'), preprocess=lambda x: x/x.max(), multiple_of=8, activation='softmax')


MODELS = dict(
    torch=(torch_model, picture), function=(lambda: FunctionModel(lambda x: (x[:, 0] > .5).astype(int), classes=CLASSES), picture),
    onnx=(cardiac_net, lambda: picture().replace(image=picture().image.repeat(4, 1).repeat(4, 2), labels=None)), kept=(lambda: torch_model().keep('b'), picture),
    sliding=(lambda: torch_model().sliding(16), picture), slicewise=(lambda: torch_model().slicewise(), stack),
    oriented=(lambda: torch_model().slicewise().oriented('LPS', spacing=7.), stack), kept_sliding=(lambda: torch_model().keep('a').sliding(16), picture))


def survives(model, sample):
    "A copy that went through bytes answers the same, before and after the first prediction, and so does its fingerprint."
    first, early = fingerprint(model), cloudpickle.dumps(model)
    labels = model.label(sample)
    late = cloudpickle.dumps(model)
    assert fingerprint(model) == first
    for sent in (early, late):
        copy = cloudpickle.loads(sent)
        assert fingerprint(copy) == first and copy.settings() == model.settings()
        assert type(copy) is type(model) and copy.classes == model.classes and copy.name == model.name
        assert np.array_equal(copy.label(sample), labels) and fingerprint(copy) == first
        del copy  # one at a time: some are large
    assert np.array_equal(model.label(sample), labels)


@pytest.mark.parametrize('make, sample', list(MODELS.values()), ids=list(MODELS))
def test_models_survive_being_sent(make, sample): survives(make(), sample())


def test_learners_survive_being_sent():
    "And they do not notice."
    learn = demo_learner()
    learn.create_opt()
    before = learn.dls, learn.opt, learn.model, len(learn.dls.train_ds), learn.model.training, fingerprint(learn.model)
    survives(as_model(learn), demo_sample())
    assert (learn.dls, learn.opt, learn.model, len(learn.dls.train_ds), learn.model.training, fingerprint(learn.model)) == before
    assert as_model(learn).learn is learn
    assert len(cloudpickle.dumps(as_model(learn))) < 2_000_000                # the network, without the images
    assert fingerprint(as_model(learn)) == fingerprint(as_model(demo_learner())) != fingerprint(as_model(demo_learner(trained=False)))
