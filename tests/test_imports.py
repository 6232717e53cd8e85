"""How long imports take; told at the end of a run, as a slow machine is no fault. What they load is tested in `test_house`."""
import os
import resource
import subprocess
import sys

import pytest

import nbrun

TOLD = {}  # what -> seconds of processor time, the least of three
OVER_TORCH = 'import time, torch, numpy; t = time.process_time(); import misas.all; print(time.process_time() - t)'


@pytest.fixture(scope='module')
def compiled(tmp_path_factory):
    "An environment in which modules are compiled once, as after an installation."
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONDONTWRITEBYTECODE'}
    path = os.pathsep.join(filter(None, [str(nbrun.ROOT), os.environ.get('PYTHONPATH', '')]))
    env |= dict(PYTHONPYCACHEPREFIX=str(tmp_path_factory.mktemp('compiled')), PYTHONPATH=path)
    python('-c', 'import torch, numpy, misas.all, misas.command_line', env=env)
    return env


def python(*words, env):
    return subprocess.run([sys.executable, *words], env=env, check=True, capture_output=True, text=True).stdout


def seconds(*words, env):
    "Processor time of a process."
    def used(): return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = used()
    python(*words, env=env)
    return used() - before


def test_import_of_everything(compiled):
    TOLD['import misas.all, after torch and numpy'] = min(float(python('-c', OVER_TORCH, env=compiled)) for _ in range(3))


def test_help_of_the_command(compiled):
    asked = '-c', "import sys; from misas.command_line import main; sys.argv = ['misas', '--help']; main()"
    assert 'demo' in python(*asked, env=compiled)
    bare = min(seconds('-c', 'pass', env=compiled) for _ in range(3))
    TOLD['misas --help, after Python'] = min(seconds(*asked, env=compiled) for _ in range(3)) - bare
