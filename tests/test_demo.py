"The command `misas`: what it writes, and what it says when something is wrong."
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from misas.command_line import main
from misas.data.phantom import ThresholdModel, short_axis

ROOT = Path(__file__).resolve().parent.parent
FILES = ['brightness.html', 'curve.png', 'gallery.png', 'rotation.gif', 'rotation.html', 'sensitivity.csv']
STEPS = ['network and image', 'rotation: 25 values', 'brightness: 13 values', 'curves and pictures', 'pages', 'film']
OWN = ['demo', '--data', 'own', '--model', 'net.pt', '--out', 'out']


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A working folder with two images, masks of 0 and 255, and a TorchScript file."
    monkeypatch.chdir(tmp_path)
    for kind in ('images', 'masks'): (tmp_path/'own'/kind).mkdir(parents=True)
    for name in 'ab':
        s = short_axis((64, 80), spacing=3.)
        Image.fromarray((s.image[0]/4).clip(0, 255).astype(np.uint8)).save(f'own/images/{name}.png')
        Image.fromarray(np.uint8(255)*(s.labels == 3)).save(f'own/masks/{name}.png')
    torch.jit.save(torch.jit.trace(ThresholdModel(120.), torch.zeros(1, 1, 8, 8)), 'net.pt')
    return tmp_path


def python(*args, cwd):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, '-m', 'misas.demo', *args], cwd=cwd, env=env, capture_output=True, text=True)


def test_demo(tmp_path):
    done = python('demo', '--out', 'new', cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert sorted(os.listdir(tmp_path/'new')) == FILES and os.listdir(tmp_path) == ['new']
    frame = pd.read_csv(tmp_path/'new'/'sensitivity.csv')
    assert list(frame) == ['transform', 'value', 'unit', 'class', 'metric', 'score', 'ceiling'] and set(frame['transform']) == {'rotation', 'brightness'}
    for k in ('WM: 0.9', 'GM: 0.9', 'first_steps.ipynb', 'demo_learner', *FILES): assert k in done.stdout
    assert done.stdout.splitlines()[:6] == STEPS and '\r' not in done.stdout
    for name in ('rotation', 'brightness'):
        page = (tmp_path/'new'/f'{name}.html').read_text()
        assert page.lower().startswith('<!doctype html') and name in page and 'MNI152' in page


def test_help_and_version(tmp_path):
    assert 'demo' in python(cwd=tmp_path).stdout and python('--version', cwd=tmp_path).stdout.startswith('misas ')
    code = 'import sys, misas.command_line as c; c.main(["--help"]); print("torch" in sys.modules, "numpy" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True).stdout.endswith('False False\n')
    code = 'import sys, misas.demo; print([m for m in ("fastai", "matplotlib", "pandas", "nilearn", "misas.sweep.sensitivity") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == '[]'


def test_own_images(own, capsys):
    assert main([*OWN, '--trusted', '--label-map', '255=1', '--case', 'b', '--classes', 'background', 'cavity']) == 0
    assert sorted(os.listdir('out')) == FILES and set(pd.read_csv('out/sensitivity.csv')['class']) == {'cavity'}
    assert 'net on b: dice under rotation, against the labels' in capsys.readouterr().out


def test_without_masks_in_a_flat_folder_with_other_files(own, capsys):
    os.rename('own/images', 'flat')
    Path('flat/notes.txt').write_text('no image')
    Path('out').mkdir()
    Path('out/mine.txt').write_text('stays')
    assert main(['demo', '--data', 'flat', '--model', 'net.pt', '--trusted', '--size', '32x40', '--out', 'out']) == 0
    assert sorted(os.listdir('out')) == sorted([*FILES, 'mine.txt'])
    out = capsys.readouterr().out
    assert out.startswith('network and image\n') and '\nNo masks' in out and "reference='prediction'" in out


@pytest.mark.parametrize('args, words', [
    ([*OWN], '--trusted'),
    ([*OWN, '--trusted'], '--label-map 255=1'),
    ([*OWN, '--trusted', '--label-map', '1=1'], '255'),
    ([*OWN, '--trusted', '--case', 'c'], 'no image c; the first ones are a, b'),
    ([*OWN[:-2], '--trusted', '--label-map', '255=1', '--out', 'no/where'], 'no folder no'),
    ([*OWN[:-2], '--trusted', '--label-map', '255=1', '--out', 'net.pt'], 'is a file'),
    (['demo', '--data', 'nowhere', '--model', 'net.pt'], 'nowhere: there is no such folder'),
    (['demo', '--data', 'own', '--model', 'own/images/a.png'], '.onnx'),
    (['demo', '--data', 'own/masks/a.png', '--model', 'net.pt'], 'no such folder'),
    (['demo', '--model', 'net.pt'], '--data and --model'),
    (['demo', '--case', 'a'], '--case is for your own images'),
    (['demo', '--size', 'big'], '--size'),
    (['dmeo'], 'dmeo')])
def test_bad_input(own, capsys, args, words):
    before = sorted(own.rglob('*'))
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('misas: ') and err.count('\n') == 1 and words in err, err
    assert sorted(own.rglob('*')) == before


def test_a_case_without_its_mask(own, capsys):
    os.remove('own/masks/a.png')
    assert main([*OWN, '--trusted']) == 2 and 'no mask for a.png' in capsys.readouterr().err


@pytest.mark.parametrize('what, code, words', [(KeyboardInterrupt, 130, 'interrupted'), (MemoryError, 2, 'MemoryError')])
def test_interrupted(own, capsys, monkeypatch, what, code, words):
    def stop(*a, **kw): raise what
    monkeypatch.setattr('misas.view.plot.save_gif', stop)  # the last file: all others are there by then
    assert main([*OWN, '--trusted', '--label-map', '255=1']) == code
    assert words in capsys.readouterr().err and sorted(os.listdir()) == ['net.pt', 'own']


@pytest.mark.skipif(sys.platform == 'win32', reason='no pseudo terminals')
def test_on_a_terminal(own):
    "One line, which is empty again in the end, also after an error."
    for args, code in (((*OWN, '--trusted', '--label-map', '255=1'), 0), ((*OWN, '--trusted'), 2)):
        shown = on_terminal(args, code)
        assert shown.startswith('network and image...\r' + ' '*20 + '\r') and 'Warning' not in shown
        lines = ['film...', 'net on a: dice'] if code == 0 else ['misas: own/masks/a.png: holds the values 255']
        for line in lines: assert '\r' + line in shown, shown


def on_terminal(args, code):
    "What a command shows on a terminal."
    import pty
    here, there = pty.openpty()
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    running = subprocess.Popen([sys.executable, '-m', 'misas.demo', *args], env=env, stdin=there, stdout=there, stderr=there)
    os.close(there)
    shown = b''
    try:
        while part := os.read(here, 10_000): shown += part
    except OSError: pass  # it has ended
    os.close(here)
    assert running.wait(60) == code, shown.decode()
    return shown.decode()


QUIET = """
import warnings
from misas.demo import demo_learner
learn = demo_learner()
warnings.warn('`torch.jit.script` is deprecated: says somebody else', FutureWarning)
from misas.all import as_model
learn.export('net.pkl')
as_model('net.pkl', trusted=True)
"""


def test_warnings_of_others_are_not_ours_and_yours_stay(tmp_path):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-c', QUIET], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count('Warning') == 1 and 'says somebody else' in done.stderr, done.stderr


LOUD = """
import warnings
import torch


class Loud(torch.nn.Module):
    def forward(self, x):
        warnings.warn('this network is for the left side')
        return torch.cat([.5 - x, x - .5], 1)


torch.save(Loud(), 'loud.pkl')
"""


def test_a_warning_of_your_network_is_shown(own, monkeypatch):
    (own/'loud.py').write_text(LOUD.replace("torch.save", "if __name__ == 'loud': torch.save"))
    monkeypatch.syspath_prepend(own)
    __import__('loud')
    with pytest.warns(UserWarning, match='for the left side'):
        assert main(['demo', '--data', 'own', '--model', 'loud.pkl', '--trusted', '--label-map', '255=1', '--out', 'out']) == 0
    assert sorted(os.listdir('out')) == FILES


def test_a_missing_library(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'fastai.vision.all', None)
    assert main(['demo']) == 2 and 'pip install "misas[demo]"' in capsys.readouterr().err and not os.listdir()
