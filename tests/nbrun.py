"""Runs the notebooks: for the tests, and to write their outputs (`python tests/nbrun.py [NOTEBOOK ...]`).

Outputs are committed, so that the notebooks can be read on the web. This file says how they are made:
in process with execnb, without execution counts, progress bars and widget state. `--readme` also makes README.md.
Each has a process of its own, where the same things are imported: what a notebook leaves behind ends with it.
"""
import argparse
import atexit
import base64
import importlib
import io
import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import re
import sys
import threading
import time
import traceback
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
            o['metadata'] = {k: v for k, v in o.get('metadata', {}).items() if k in o['data']}
            if 'text/plain' in o['data']: o['data']['text/plain'] = [re.sub(r' at 0x[0-9a-f]+', '', l) for l in o['data']['text/plain']]
        res.append(o)
    return json.loads(json.dumps(res))


class CellError(Exception):
    "A cell of a notebook raised something."


def same_luck():
    "Chance decides nothing: networks with random weights are the same in each run."
    import numpy as np
    import torch
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class Later:
    "A module that is imported when something of it is asked for, and takes no memory until then."
    def __init__(self, name): self._name = name

    def __getattr__(self, what):
        if what.startswith('_'): raise AttributeError(what)  # as pytest asks of everything it sees
        return getattr(importlib.import_module(self._name), what)


def give_back():
    "What is not needed any more goes back to the system, where its malloc is that of glibc."
    import ctypes
    import gc
    gc.collect()
    try: ctypes.CDLL('libc.so.6').malloc_trim(0)
    except (OSError, AttributeError): pass


def run(path):
    "The notebook at `path`, run in its own folder, with fresh outputs. An exception in a cell is raised here."
    from execnb.shell import CaptureShell
    same_luck()
    nb, here = read(path), os.getcwd()
    shell = CaptureShell(mpl_format='retina')  # twice as many pixels as are shown, so that screens of today show them sharp
    shell.run("import matplotlib; matplotlib.rcdefaults(); matplotlib.use('module://matplotlib_inline.backend_inline'); "
              "matplotlib.rcParams.update({'figure.dpi': 80, 'savefig.dpi': 80, 'savefig.bbox': 'tight'})")
    shell.run("import pandas; pandas.set_option('display.max_colwidth', 600)")  # whole sentences, as fastai sets it
    from misas.docs import tell_pictures
    tell_pictures(shell)  # pictures with words for those who do not see them
    os.chdir(Path(path).parent)
    try:
        for i, cell in enumerate(nb['cells']):
            if cell['cell_type'] != 'code': continue
            outs = shell.run(source(cell))
            give_back()
            if shell.exc:
                told = f'{Path(path).name}, cell {i}: {type(shell.exc).__name__}: {shell.exc}\n{source(cell)}'
                raise CellError(told.encode(errors='backslashreplace').decode()) from shell.exc
            cell['outputs'], cell['execution_count'] = clean_outputs(outs), None
    finally: os.chdir(here)
    small_pictures(nb, limit(path))
    nb['metadata'] = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    return nb


# ---- pictures that are sharp, in notebooks that stay small ----

QUALITIES = (2, 64, 160), (2, 32, 120), (2, 24, 90), (1.5, 32, 120), (1.5, 24, 90), (1, 40, 120), (1, 24, 56)
# pixels for each that is shown, shades of grey, colours: from the best on, until the notebook is small enough


def limit(path):
    "Bytes that a notebook may have."
    return 1_000_000 if Path(path).relative_to(NBS).parts[0] in ('cases', 'tutorials', 'guides', 'benchmarks') else 300_000


def bundles(nb):
    "The outputs of a notebook that hold a PNG."
    return [o for cell in nb['cells'] for o in cell.get('outputs', ()) if 'image/png' in o.get('data', {})]


def small_pictures(nb, most):
    "Make the PNGs of a notebook smaller, all in the same way, so that it has not more than `most` bytes."
    pictures = [o['data'] for o in bundles(nb)]
    whole = [''.join(data['image/png']) for data in pictures]
    shown = [shown_width(o) for o in bundles(nb)]
    rest = len(json.dumps(nb, indent=1, ensure_ascii=False).encode()) - sum(map(len, whole))
    for quality in QUALITIES:
        made = [small_png(png, width, *quality) for png, width in zip(whole, shown)]
        if rest + sum(map(len, made)) < .97*most: break
    for data, png in zip(pictures, made if pictures else ()): data['image/png'] = png


def shown_width(output):
    "How many pixels wide a page shows a picture."
    from PIL import Image
    told = output.get('metadata', {}).get('image/png', {})
    return told.get('width') or Image.open(io.BytesIO(base64.b64decode(''.join(output['data']['image/png'])))).width


def small_png(png, width, times, greys, colours):
    "A picture (base64) with at most so many pixels for each of the `width` that are shown, and fewer shades."
    from PIL import Image
    picture, out = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB'), io.BytesIO()
    scale = times*width/picture.width
    if scale < 1: picture = picture.resize([round(scale*n) for n in picture.size], Image.Resampling.LANCZOS)
    few_colours(picture, greys, colours).save(out, 'PNG', optimize=True)
    return min(base64.b64encode(out.getvalue()).decode(), png, key=len)


def few_colours(picture, greys, colours):
    "Evenly spaced greys; of colours the most frequent as they are, and means of the others. Every pixel gets the nearest."
    import numpy as np
    from PIL import Image
    from scipy.spatial import cKDTree
    packed = np.asarray(picture).astype(np.int32) @ [65536, 256, 1]
    codes, counts = np.unique(packed, return_counts=True)
    seen = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1)
    levels = np.linspace(0, 255, greys).round()[:, None].repeat(3, 1)
    table = np.concatenate([levels, main_colours(seen, counts, colours)])
    nearest = np.zeros(1 << 24, np.uint8)
    nearest[codes] = cKDTree(table).query(seen)[1]
    out = Image.fromarray(nearest[packed])
    out.putpalette(table.astype(np.uint8).tobytes())
    return out


def main_colours(seen, counts, most):
    "The colours (n, 3) that stand for all that are not grey: a third is taken as it is, so that those of legends are right."
    import numpy as np
    from PIL import Image
    coloured = np.ptp(seen, -1) > 10
    seen, counts = seen[coloured], counts[coloured]
    if len(seen) <= most: return seen
    order = np.argsort(-counts, kind='stable')
    exact, others = seen[order[:most//3]], order[most//3:]
    often = seen[others].repeat(np.maximum(1, np.sqrt(counts[others]).astype(int)), 0).astype(np.uint8)
    means = Image.fromarray(often[None]).quantize(most - len(exact), dither=Image.Dither.NONE).getpalette()
    return np.concatenate([exact, np.reshape(means, (-1, 3))[:most - len(exact)]])


# ---- a process for each notebook ----

# A fork server imports what most notebooks need, once; each notebook then gets a fresh copy of that process.
# So imports are paid for once, memory goes back when a notebook ends, and what it changed is no other's.
PRELOAD = ['misas.all', 'matplotlib.pyplot', 'execnb.shell']
PEAKS = {}  # notebook -> MB that this process held meanwhile, and the notebook at most, libraries of this process apart


def memory(what='VmHWM', pid='self'):
    "MB that a process holds ('VmRSS') or held at most ('VmHWM'); 0 where the system does not say."
    try: lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError: return 0
    return next((int(line.split()[1])//1024 for line in lines if line.startswith(what)), 0)


def forget_peak():
    "From now on 'VmHWM' tells of what comes, where the system lets it."
    try: Path('/proc/self/clear_refs').write_text('5')
    except OSError: pass


def _context():
    if 'forkserver' not in multiprocessing.get_all_start_methods(): return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOAD)
    held = os.environ.get('PYTHONPATH', '')
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), held]))  # this checkout's misas, whatever is installed
    try: multiprocessing.forkserver.ensure_running()
    finally: os.environ['PYTHONPATH'] = held
    return context


def _answer(pipe, path):
    "In the process of a notebook: run it, and send the notebook or what went wrong, and the memory it took."
    nb, told = None, None
    try: nb = run(path)
    except Exception as e: told = str(e) if isinstance(e, CellError) else traceback.format_exc()
    pipe.send((nb, told, memory(), memory('RssFile')))
    pipe.close()
    threading._shutdown()     # as when an interpreter ends: pools with threads of their own let their processes go, ...
    atexit._run_exitfuncs()  # ... and what the notebook started is taken away: temporary folders, workers


def run_apart(path):
    "`run` in a process of its own."
    context = _context()
    give_back()
    mine, its = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(its, path))
    child.start()
    its.close()
    try: nb, told, peak, libraries = mine.recv()
    except EOFError: nb, told, peak, libraries = None, 'the process that ran it is gone', 0, 0
    finally: mine.close()
    child.join()
    PEAKS[str(Path(path).relative_to(NBS).with_suffix(''))] = memory('VmRSS'), peak - min(libraries, memory('RssFile'))
    if told: raise CellError(told + (f' (exit code {child.exitcode})' if child.exitcode else ''))
    return nb


# ---- do the committed outputs still say what the code does? ----

NUM = re.compile(r'-?\d+(?:\.\d+)?(?:e[-+]?\d+)?')


def same_text(a, b, rel=.02, tol=.011):
    "Do two texts agree, numbers to 2 % or a unit of the second decimal (another CPU rounds differently)?"
    fold = lambda t: ' '.join(re.sub(r'[-─]{4,}', '-', NUM.sub('#', t)).split())
    if fold(a) != fold(b): return False
    return all(abs(x - y) <= max(tol, rel*abs(x)) for x, y in zip(map(float, NUM.findall(a)), map(float, NUM.findall(b))))


def same_picture(a, b, tol=8):
    "Do the PNGs of two outputs show the same at the size of a thumbnail, and take as much room on the page?"
    import numpy as np
    from PIL import Image
    wide = [shown_width(o) for o in (a, b)]
    a, b = (Image.open(io.BytesIO(base64.b64decode(''.join(o['data']['image/png'])))).convert('L') for o in (a, b))
    high = [width*one.height/one.width for width, one in zip(wide, (a, b))]
    if any(abs(one - other) > .03*one + 3 for one, other in (wide, high)): return False
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
            text = lambda o: ''.join(o['text'] if 'text' in o else '' if 'image/png' in o['data'] else o['data'].get('text/plain', ''))
            if not same_text(text(x), text(y)): return f'cell {i} shows\n{text(x)}\na fresh run gives\n{text(y)}'
            if 'image/png' in x.get('data', {}) and not same_picture(x, y):
                return f'cell {i} shows a picture that a fresh run does not give'


# ---- README.md ----

def image_tag(path, cell, known):
    "A picture of a README, as large as in a notebook, with the words of its cell or of itself."
    words = re.search(r'^#\| fig-alt: *"?(.*?)"?$', cell, re.M)
    width = f' width="{known["width"]}"' if 'width' in known else ''
    return f'<img src="{path}"{width} alt="{words[1] if words else known.get("alt", "")}">'


def readme():
    "README.md and its pictures from nbs/index.ipynb, as {path: bytes}; needs no quarto."
    nb, out, files, n = read(NBS/'index.ipynb'), [], {}, 0
    for cell in nb['cells']:
        s = source(cell)
        if cell['cell_type'] == 'markdown':
            out.append(re.sub(r'(\]\(|src=")(?!http|#)', r'\1nbs/', s))
            continue
        if '#| hide' in s: continue
        code = '\n'.join(l for l in s.splitlines() if not l.startswith('#|'))
        if '#| echo: false' not in s: out.append(f'```python\n{code}\n```')
        for o in cell['outputs']:
            d = o.get('data', {})
            if 'image/png' in d:
                n += 1
                files[NBS/f'images/readme_{n}.png'] = base64.b64decode(''.join(d['image/png']))
                out.append(image_tag(f'nbs/images/readme_{n}.png', s, o.get('metadata', {}).get('image/png', {})))
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
    several = [Path(o).resolve() for o in a.notebook] or ([] if a.readme else notebooks())
    for nb in several:
        start = time.time()
        write(run_apart(nb), nb)
        print(f'{nb.relative_to(ROOT)}: {time.time() - start:.1f} s, {nb.stat().st_size//1000} KB', flush=True)
    if a.readme:
        for f, b in readme().items(): f.write_bytes(b)
