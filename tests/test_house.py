"""The rules of the house: what is exported, what may import what, what is committed."""
import ast
import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import house
import nbrun
from nbrun import NBS, ROOT

FLOORS = [[m for m in floor.split('\n') if m and m[0] != '#'] for floor in (ROOT/'tests/floors.txt').read_text().split('\n\n')]
LEVEL = {m: (i, j) for i, floor in enumerate(FLOORS) for j, m in enumerate(floor)}
MODULES = {'.'.join(p.relative_to(ROOT/'misas').with_suffix('').parts): p for p in (ROOT/'misas').rglob('*.py')
           if p.stem not in ('__init__', '_modidx')}
OURS = [p for p in nbrun.notebooks()]
ids = dict(ids=lambda o: str(o.relative_to(NBS)) if isinstance(o, Path) else str(o))


def exported():
    "default_exp of every notebook: {module: notebook}"
    found = {}
    for p in OURS:
        for c in nbrun.read(p)['cells']:
            if m := re.search(r'^#\|\s*default_exp\s+(\S+)', nbrun.source(c), re.M): found[m[1]] = p
    return found


def imports(module):
    "Modules of misas that `module` imports, inside functions too."
    here = ['misas', *module.split('.')]
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[:-node.level] if node.level else []
            stem = '.'.join([*base, *(node.module or '').split('.')]).strip('.')
            names = [stem, *(f'{stem}.{a.name}' for a in node.names)]
        else: continue
        for n in names:
            if n.startswith('misas.') and n[6:] in MODULES: yield n[6:]


def test_every_module_has_a_notebook_and_a_floor():
    assert set(exported()) == set(MODULES), 'modules and default_exp of the notebooks differ: delete orphans, run nbdev_export'
    assert set(LEVEL) == set(MODULES), 'give every module its floor in FLOORS'


@pytest.mark.parametrize('module', sorted(MODULES))
def test_arrows_point_down(module):
    up = [o for o in imports(module) if LEVEL[o] >= LEVEL[module]]
    assert not up, f'{module} imports {up}, which does not stand below it'


def test_rooms_have_no_circle():
    "Two rooms that import from each other are one room."
    def room(module): return module.split('.')[0]
    below = {}
    for module in MODULES:
        below.setdefault(room(module), set()).update(room(o) for o in imports(module) if room(o) != room(module))

    def go_down(name, above=()):
        assert name not in above, f'rooms in a circle: {" -> ".join((*above, name))}'
        for o in below[name]: go_down(o, (*above, name))

    for name in below: go_down(name)


def test_heavy_libraries_load_when_first_used():
    code = "import sys, misas.all; print([m for m in ('fastai', 'monai', 'torchio', 'captum', 'zennit', 'onnxruntime', 'onnx', 'nilearn', 'nbdev', 'joblib', 'loky', 'distributed', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT).stdout.strip() == '[]'


def test_export_is_in_sync(tmp_path):
    "Exporting the notebooks anew gives the committed modules."
    import shutil
    for o in ('nbs', 'misas'): shutil.copytree(ROOT/o, tmp_path/o, symlinks=True)
    for o in ('settings.ini', '_quarto.yml'): shutil.copy(ROOT/o, tmp_path/o)
    done = subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for p in sorted((tmp_path/'misas').rglob('*.py')):
        here = ROOT/p.relative_to(tmp_path)
        assert here.exists() and here.read_text() == p.read_text(), f'{p.relative_to(tmp_path)} is not what its notebook exports: run nbdev_export'


def test_readme_is_made_from_the_index():
    for path, content in nbrun.readme().items():
        assert path.exists() and path.read_bytes() == content, f'{path.relative_to(ROOT)} differs: run python tests/nbrun.py --readme'


@pytest.mark.parametrize('path', OURS, **ids)
def test_notebook_is_clean(path):
    nb, size = nbrun.read(path), path.stat().st_size
    assert nb['metadata'] == {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    limit = 1_000_000 if path.relative_to(NBS).parts[0] in ('cases', 'tutorials', 'guides', 'benchmarks') else 300_000
    assert size < limit, f'{size/1e3:.0f} KB'
    first = nbrun.source(nb['cells'][0])
    assert first.startswith('# ') and '\n> ' in first, 'starts with a title and a one-line summary'
    for i, c in enumerate(nb['cells']):
        text = nbrun.source(c)
        outputs = json.dumps(c.get('outputs', []))
        assert not c.get('execution_count') and not c['metadata'], f'cell {i}'
        assert not re.search(r'#\|\s*(eval:\s*false|notest|slow)|skip_exec', text), f'cell {i} would not be run'
        assert not re.search(r'(?<![\w.])/(root|home|work|tmp|Users)/', text + outputs), f'cell {i} names a path of one machine'
        assert '"output_type": "error"' not in outputs
        if re.match(r'#\|\s*export', text): assert sum(1 for l in text.splitlines() if l.strip()) <= 60, f'cell {i}: too much in one cell'


@pytest.mark.parametrize('module', sorted(MODULES))
def test_api_notebook_teaches(module):
    "An API notebook has a picture or a table, visible tests, and a good share of prose."
    cells = nbrun.read(exported()[module])['cells']
    kinds = {'md': [c for c in cells if c['cell_type'] == 'markdown'], 'py': [c for c in cells if c['cell_type'] == 'code']}
    assert 'image/png' in json.dumps([c['outputs'] for c in kinds['py']])
    assert any('assert ' in nbrun.source(c) and not nbrun.source(c).startswith('#|') for c in kinds['py'])
    assert len(kinds['md']) >= len(cells)/4


@pytest.fixture(scope='module')
def measured(): return house.measure()


@pytest.mark.parametrize('rule', house.RULES)
def test_air(measured, rule):
    "No module and no notebook breaks a rule."
    allowed, what = house.RULES[rule]
    told = []
    for key, one in measured.items():
        if one.counts[rule] <= allowed: continue
        told += [f'{key}: {one.counts[rule]} {what} (at most {allowed})', *(f'    {o}' for o in one.offenders[rule])]
    assert not told, '\n'.join(told)


def test_public_names_are_curated():
    space = {}
    exec('from misas.all import *', space)
    import misas.all
    assert set(space) - {'__builtins__'} == set(misas.all.__all__)


def test_version_stands_in_one_place():
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini')
    version = ini['DEFAULT']['version']
    import misas
    assert misas.__version__ == version and version in (ROOT/'CHANGELOG.md').read_text()
    assert version not in (ROOT/'setup.py').read_text() + (ROOT/'CITATION.cff').read_text()
    assert f"with Python {ini['DEFAULT']['min_python']} or newer" in (ROOT/'README.md').read_text()


def test_lint():
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--config', 'tests/ruff.toml', 'misas', 'tests', 'nbs', 'setup.py'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
