"""Runs the notebooks: for the tests, and to write their outputs (`python tests/nbrun.py [NOTEBOOK ...]`).

Outputs are committed, so that the notebooks can be read on the web. This file says how they are made:
in process with execnb, without execution counts, progress bars and widget state. `--readme` also makes README.md.
"""
import argparse
import base64
import io
import json
import os
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
VOLATILE = '#| volatile'  # a cell with this directive prints times or memory: its text is not compared


def notebooks():
    "Every notebook of the project, in reading order."
    return sorted(o for o in NBS.rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(NBS).parts))


def read(path): return json.loads(Path(path).read_text(encoding='utf-8'))


def write(nb, path):
    Path(path).write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')


def source(cell): return ''.join(cell['source'])


def small_png(png):
    "The same picture (base64) with 200 colours, which halves a notebook or more."
    from PIL import Image
    out = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB').quantize(200, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
    return min(base64.b64encode(out.getvalue()).decode(), png, key=len)


def clean_outputs(outputs):
    "What is worth committing of a cell's outputs: no progress bars, no widget state, no memory addresses."
    res = []
    for o in outputs:
        if o['output_type'] == 'stream' and o['name'] == 'stderr': continue
        o = {**o, 'execution_count': None} if o['output_type'] == 'execute_result' else dict(o)
        if 'data' in o:
            o['data'] = {k: v for k, v in o['data'].items() if 'jupyter.widget' not in k}
            if not o['data'] or o['data'].keys() == {'text/plain'} and 'jupyter.widget' in str(outputs): continue
            if 'image/png' in o['data']:
                o['data'].pop('image/jpeg', None)
                o['data']['image/png'] = small_png(o['data']['image/png'])
            o['metadata'] = {k: v for k, v in o.get('metadata', {}).items() if k in o['data']}
            if 'text/plain' in o['data']: o['data']['text/plain'] = [re.sub(r' at 0x[0-9a-f]+', '', l) for l in o['data']['text/plain']]
        res.append(o)
    return json.loads(json.dumps(res))


@contextmanager
def classes_as_they_are():
    "A notebook gives classes of the package its own methods (`@patch`); afterwards they have those of the package again."
    import misas.all  # noqa: F401
    ours = [m for n, m in sys.modules.items() if n.startswith('misas')]
    held = {c: dict(vars(c)) for m in ours for c in vars(m).values() if isinstance(c, type) and c.__module__.startswith('misas')}
    try: yield
    finally:
        for c, old in held.items():
            for k, v in [*vars(c).items()]:
                if k not in old: delattr(c, k)
                elif old[k] is not v: setattr(c, k, old[k])


def run(path):
    "The notebook at `path`, run in its own folder, with fresh outputs. An exception in a cell is raised here."
    with classes_as_they_are(): return _run(path)


def _run(path):
    from execnb.shell import CaptureShell
    nb, here = read(path), os.getcwd()
    shell = CaptureShell(mpl_format='png')
    shell.run("import matplotlib; matplotlib.rcdefaults(); matplotlib.use('module://matplotlib_inline.backend_inline'); "
              "matplotlib.rcParams.update({'figure.dpi': 80, 'savefig.dpi': 80, 'savefig.bbox': 'tight'})")
    if 'pandas' in sys.modules: shell.run("import pandas; pandas.reset_option('^display')")  # a notebook that ran before may have set them
    os.chdir(Path(path).parent)
    try:
        for i, cell in enumerate(nb['cells']):
            if cell['cell_type'] != 'code': continue
            outs = shell.run(source(cell))
            if shell.exc:
                told = f'{Path(path).name}, cell {i}: {type(shell.exc).__name__}: {shell.exc}\n{source(cell)}'
                raise type('CellError', (Exception,), {})(told.encode(errors='backslashreplace').decode()) from shell.exc
            cell['outputs'], cell['execution_count'] = clean_outputs(outs), None
    finally:
        os.chdir(here)
        if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')
    nb['metadata'] = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    return nb


# ---- do the committed outputs still say what the code does? ----

NUM = re.compile(r'-?\d+(?:\.\d+)?(?:e[-+]?\d+)?')


def same_text(a, b, rel=.02, tol=.011):
    "Do two texts agree, numbers to 2 % or a unit of the second decimal (another CPU rounds differently)?"
    fold = lambda t: ' '.join(re.sub(r'[-─]{4,}', '-', NUM.sub('#', t)).split())
    if fold(a) != fold(b): return False
    return all(abs(x - y) <= max(tol, rel*abs(x)) for x, y in zip(map(float, NUM.findall(a)), map(float, NUM.findall(b))))


def same_picture(a, b, tol=8):
    "Do two PNGs (base64) show the same at the size of a thumbnail?"
    import numpy as np
    from PIL import Image
    a, b = (Image.open(io.BytesIO(base64.b64decode(''.join(o)))).convert('L') for o in (a, b))
    if abs(a.width - b.width) > .03*a.width + 3 or abs(a.height - b.height) > .03*a.height + 3: return False
    a, b = (np.asarray(o.resize((64, 64))).astype(float) for o in (a, b))
    return np.abs(a - b).mean() < tol


def output_drift(old, new):
    "The first difference between the outputs of two runs of a notebook, as a sentence, or None."
    for i, (a, b) in enumerate(zip(old['cells'], new['cells'])):
        if a['cell_type'] != 'code': continue
        oa, ob = a.get('outputs', []), b['outputs']
        kinds = lambda outs: [sorted(o['data']) if 'data' in o else o.get('name') for o in outs]
        if kinds(oa) != kinds(ob): return f'cell {i} has outputs {kinds(oa)}, a fresh run gives {kinds(ob)}'
        if VOLATILE in source(a): continue
        for x, y in zip(oa, ob):
            text = lambda o: ''.join(o['text'] if 'text' in o else o['data'].get('text/plain', ''))
            if not same_text(text(x), text(y)): return f'cell {i} shows\n{text(x)}\na fresh run gives\n{text(y)}'
            if 'image/png' in x.get('data', {}) and not same_picture(x['data']['image/png'], y['data']['image/png']):
                return f'cell {i} shows a picture that a fresh run does not give'


# ---- README.md ----

def readme():
    "README.md and its pictures from nbs/index.ipynb, as {path: bytes}; needs no quarto."
    nb, out, files, n = read(NBS/'index.ipynb'), [], {}, 0
    for cell in nb['cells']:
        s = source(cell)
        if cell['cell_type'] == 'markdown':
            out.append(re.sub(r'\]\((?!http|#)', '](nbs/', s))
            continue
        if '#| hide' in s: continue
        code = '\n'.join(l for l in s.splitlines() if not l.startswith('#|'))
        if '#| echo: false' not in s: out.append(f'```python\n{code}\n```')
        for o in cell['outputs']:
            d = o.get('data', {})
            if 'image/png' in d:
                n += 1
                files[NBS/f'images/readme_{n}.png'] = base64.b64decode(''.join(d['image/png']))
                out.append(f'![](nbs/images/readme_{n}.png)')
            elif t := ''.join(o['text'] if 'text' in o else d.get('text/markdown', d.get('text/plain', ''))).rstrip():
                out.append(t if 'text/markdown' in d else '\n'.join('    ' + l for l in t.splitlines()))
    text = '<!-- made from nbs/index.ipynb by tests/nbrun.py --readme: change that notebook -->\n\n' + '\n\n'.join(out) + '\n'
    return {ROOT/'README.md': text.encode(), **files}


if __name__ == '__main__':
    p = argparse.ArgumentParser(description='Run notebooks and write their outputs.')
    p.add_argument('notebook', nargs='*', help='which (default: all)')
    p.add_argument('--readme', action='store_true', help='make README.md from nbs/index.ipynb')
    a = p.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '2')
    sys.path.insert(0, str(ROOT))
    for nb in ([Path(o).resolve() for o in a.notebook] or ([] if a.readme else notebooks())):
        t = time.time()
        write(run(nb), nb)
        print(f'{nb.relative_to(ROOT)}: {time.time() - t:.1f} s, {nb.stat().st_size//1000} KB', flush=True)
    if a.readme:
        for f, b in readme().items(): f.write_bytes(b)
