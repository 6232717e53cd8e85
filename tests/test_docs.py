"""The docs pipeline: nbdev's processing of the notebooks, then a site with smalldocs, whose pages, links, words and tables are looked at."""
import html
import posixpath
import re
import shutil
import subprocess
import sys

import pytest

import nbrun
from nbrun import ROOT

RENDER = """
import os
from nbdev.serve import proc_nbs
if __name__ == '__main__':
    proc_nbs(n_workers=0)
    os._exit(0)  # without the shells' own ends: each collects garbage, which takes a minute together
"""
HOST = 'https://chfc-cmi.github.io/misas'  # where the site will be: its own pages
GUESSED = 0  # pictures in whose words nobody had a hand, nor the figure itself; may only become fewer


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder of the rendered site."
    copy = tmp_path_factory.mktemp('docs')
    for o in ('nbs', 'misas'): shutil.copytree(ROOT/o, copy/o)
    for o in ('settings.ini', '_quarto.yml'): shutil.copy(ROOT/o, copy/o)
    (copy/'render.py').write_text(RENDER)
    done = subprocess.run([sys.executable, 'render.py'], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    done = subprocess.run([sys.executable, '-m', 'smalldocs.cli', 'render', '--quiet', str(copy/'_proc')], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy/'_proc/_docs'


@pytest.fixture(scope='module')
def pages(site):
    "Path within the site -> text, of every page."
    return {p.relative_to(site).as_posix(): p.read_text(encoding='utf-8') for p in site.rglob('*.html')}


def faults(pages, find):
    "'page: what' for everything that `find` finds in the text of a page."
    return [f'{page}: {what}' for page, text in pages.items() for what in find(text)]


def test_every_notebook_has_a_page(pages):
    bare = ' '.join(re.sub(r'<[^>]+>|[^\w<>/]', '', text) for text in pages.values())
    for nb in nbrun.notebooks():
        title = nbrun.source(nbrun.read(nb)['cells'][0]).splitlines()[0][2:]
        assert re.sub(r'[^\w]', '', title) in bare, f'no page is titled {title!r}'
    assert '<img' in pages['api/sweep/sensitivity.html']


def test_every_guide_and_tutorial_is_in_the_sidebar():
    listed = set(re.findall(r'- ((?:\w+/)+\w+\.ipynb)', (ROOT/'_quarto.yml').read_text()))
    missing = [str(nb.relative_to(nbrun.NBS)) for nb in nbrun.notebooks() if str(nb.relative_to(nbrun.NBS)) not in listed | {'index.ipynb'}]
    assert not missing, f'the sidebar in _quarto.yml does not list {missing}'


# ---- links ----

def target(page, link):
    "(page, anchor) of a link within the site; None for one to elsewhere."
    link = html.unescape(link)
    if link.startswith(HOST): link = '/' + link[len(HOST):].lstrip('/')
    if re.match(r'[a-z]+:|//', link): return None
    path, _, anchor = link.partition('#')
    path = path.partition('?')[0]
    if not path: return page, anchor
    path = path[1:] if path[0] == '/' else posixpath.join(posixpath.dirname(page), path)
    path = posixpath.normpath(path) if path else 'index.html'
    return path if not path.endswith('.') else 'index.html', anchor


def test_links_lead_somewhere(site, pages):
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    files = {p.relative_to(site).as_posix() for p in site.rglob('*') if p.is_file()}
    broken = []
    for page, text in pages.items():
        for link in set(re.findall(r'(?:href|src)="([^"]*)"', text)):
            found = target(page, link)
            if found is None: continue
            path, anchor = found
            if path not in files: broken.append(f'{page}: {link} leads to no file')
            elif anchor and path in anchors and anchor not in anchors[path]: broken.append(f'{page}: {link}, and that page has no such anchor')
    assert not broken, f'{len(broken)} broken links\n' + '\n'.join(broken[:20])


def test_no_link_is_within_a_link(pages):
    found = faults(pages, lambda text: re.findall(r'\[<a [^>]*><code>[^<]*</code></a>\]\([^)]*\)', text))
    assert not found, 'a name in the text of a link became a link itself\n' + '\n'.join(found[:20])


# ---- pictures ----

def words(text):
    "The alternative text of every picture of a page; None where one has none."
    return [html.unescape(found[1]) if (found := re.search(r'\balt="([^"]*)"', tag)) else None for tag in re.findall(r'<img\b[^>]*>', text)]


def test_every_picture_has_words(pages):
    silent = faults(pages, lambda text: ['a picture without alt text' for alt in words(text) if not (alt or '').strip()])
    assert not silent, 'write `#| fig-alt: ...` at the top of the cell\n' + '\n'.join(silent[:20])
    lazy = faults(pages, lambda text: [alt for alt in words(text) if re.fullmatch(r'(fig(ure)?|image|picture|img|plot)[\s_.]*\d*\.?', alt or '', re.I)])
    assert not lazy, 'these words do not tell what is seen\n' + '\n'.join(lazy[:20])


def guessed(nb):
    "How many pictures of a notebook have neither a `fig-alt` nor words of the figure."
    count = 0
    for cell in nbrun.read(nb)['cells']:
        if cell['cell_type'] != 'code' or re.search(r'^#\|\s*(hide|include: false)\b|fig-alt:', nbrun.source(cell), re.M): continue
        shown = [o for o in cell['outputs'] if 'image/png' in o.get('data', {})]
        count += sum(not o.get('metadata', {}).get('image/png', {}).get('alt') for o in shown)
    return count


def test_words_are_those_of_a_hand_or_of_the_figure():
    found = {str(nb.relative_to(nbrun.NBS)): guessed(nb) for nb in nbrun.notebooks()}
    most = sorted(found, key=found.get)[-10:]
    assert sum(found.values()) <= GUESSED, (f'{sum(found.values())} pictures have words that are only guessed from the code, at most {GUESSED} may: '
                                            f'run python tests/nbrun.py on, or write `#| fig-alt` in, {most}')
    own = [nb for nb, n in found.items() if n and nb.split('/')[0] in ('tutorials', 'cases', 'guides', 'index.ipynb')]
    assert not own, f'write `#| fig-alt: ...` at the top of the cells with pictures in {own}'


# ---- code and parameters ----

def test_no_code_block_is_empty(pages):
    found = faults(pages, lambda text: ['an empty block of code' for block in re.findall(r'<pre\b[^>]*>(.*?)</pre>', text, re.S)
                                        if not re.sub(r'<[^>]+>|\s', '', block)])
    assert not found, '\n'.join(found[:20])


def part(text, anchor, level):
    "What stands under the heading with an anchor, as far as the next one."
    found = re.search(rf'<h{level}\b[^>]*\bid="{re.escape(anchor)}".*?(?=<h[234]\b|<hr|</main)', text, re.S)
    assert found, f'no heading of level {level} has the anchor {anchor!r}'
    return found[0]


def test_parameters_stand_in_a_table(pages):
    public = part(pages['api/sweep/pairs.html'], 'sensitivity_grid', 3)
    assert re.search(r'<td[^>]*><code>sample</code></td>', public) and '<details' not in public
    helper = part(pages['api/sweep/tolerance.html'], 'tolerance_values', 4)
    assert '<details' in helper and re.search(r'<td[^>]*><code>resolution</code></td>', helper)
    signatures = faults(pages, lambda text: re.findall(r'<code[^>]*>(?:<[^>]*>)*def \w+\((?:[^#]*#[^\n]*\n)+\)-&gt;', text))
    assert not signatures, 'a signature with comments, where a table should be\n' + '\n'.join(signatures[:5])


def test_private_names_have_no_entry(pages):
    found = faults(pages, lambda text: re.findall(r'<h[23]\b[^>]*\bid="(?:\w+\.)?_[a-z]\w*"', text))
    assert not found, '\n'.join(found[:20])


# ---- the first page ----

def test_bibtex_says_what_the_citation_file_says():
    told = (ROOT/'CITATION.cff').read_text().partition('preferred-citation:')[2]
    bibtex = (ROOT/'README.md').read_text().partition('```bibtex')[2].partition('```')[0]
    fields = re.findall(r'(?:family-names|title|journal|volume|year|doi|start): "?([^"\n]+)"?', told)
    assert len(fields) == 11 and not [one for one in fields if one not in bibtex], 'the BibTeX in nbs/index.ipynb is not that of CITATION.cff'


def test_the_film_is_light():
    film = ROOT/'nbs/images/heart.gif'
    assert film.stat().st_size < 1.5e6 and 'src="nbs/images/heart.gif"' in (ROOT/'README.md').read_text()[:3000], 'the film stands above the fold'


# ---- do these tests find what they look for? ----

FAULTY = {
    'links': (test_links_lead_somewhere, '<a href="gone.html">', '<a href="page.html#nowhere">', f'<a href="{HOST}/page.html#nowhere">', '<img src="no.gif">'),
    'nested': (test_no_link_is_within_a_link, '[<a href="page.html"><code>Sweep</code></a>](sweep.ipynb)'),
    'silent': (test_every_picture_has_words, '<img src="x.png">', '<img alt="" src="x.png">', '<img src="x.png" alt="figure 1">'),
    'empty': (test_no_code_block_is_empty, '<pre class="sourceCode"><code> <span></span>\n</code></pre>'),
    'private': (test_private_names_have_no_entry, '<h3 id="sample._secret">'),
}


@pytest.mark.parametrize('what', FAULTY)
def test_a_fault_is_found(what, tmp_path):
    check, *examples = FAULTY[what]
    given = {'site': tmp_path} if 'site' in check.__code__.co_varnames else {}
    (tmp_path/'page.html').write_text('<h2 id="here">')
    for example in examples:
        with pytest.raises(AssertionError): check(**given, pages={'page.html': f'<h2 id="here">{example}'})
    check(**given, pages={'page.html': '<h2 id="here"><a href="page.html#here"><pre>1</pre><img src="page.html" alt="a heart, in grey">'})
