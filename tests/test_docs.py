"""The docs pipeline: nbdev's processing of the notebooks, then a site with smalldocs, whose pages and links are looked at."""
import re
import shutil
import subprocess
import sys

import nbrun
from nbrun import ROOT

RENDER = """
import os
from nbdev.serve import proc_nbs
if __name__ == '__main__':
    proc_nbs(n_workers=0)
    os._exit(0)  # without the shells' own ends: each collects garbage, which takes a minute together
"""


def test_site(tmp_path):
    for o in ('nbs', 'misas'): shutil.copytree(ROOT/o, tmp_path/o)
    for o in ('settings.ini', '_quarto.yml'): shutil.copy(ROOT/o, tmp_path/o)
    (tmp_path/'render.py').write_text(RENDER)
    done = subprocess.run([sys.executable, 'render.py'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    site = tmp_path/'_proc'
    done = subprocess.run([sys.executable, '-m', 'smalldocs.cli', 'render', '--quiet', str(site)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {p.relative_to(site/'_docs'): p.read_text(encoding='utf-8') for p in (site/'_docs').rglob('*.html')}
    for nb in nbrun.notebooks():
        title = nbrun.source(nbrun.read(nb)['cells'][0]).splitlines()[0][2:]
        assert any(re.sub(r'[^\w]', '', title) in re.sub(r'<[^>]+>|[^\w<>/]', '', text) for text in pages.values()), f'no page is titled {title!r}'
    assert '<img' in next(t for p, t in pages.items() if p.name.endswith('sensitivity.html'))
    broken = [f'{p}: {link}' for p, text in pages.items() for link in re.findall(r'href="([^"#?:]+\.html)', text)
              if not ((site/'_docs'/p).parent/link).exists() and not (site/'_docs'/link.lstrip('/')).exists()]
    assert not broken, broken[:10]
