"Pages of `to_html` in a real browser with scrollbars, without a network: what is seen, and do the controls do what they say?"
import os
import re
import sys
import tempfile
from base64 import b64decode
from functools import lru_cache
from io import BytesIO

import browser
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from misas.attribution.attribute import attribute
from misas.data.cohort import Case
from misas.data.phantom import ThresholdModel, disc, short_axis, short_axis_stack
from misas.data.sample import Sample
from misas.inside.target import Target
from misas.instances.find import find_instances
from misas.models.adapt import as_model
from misas.study.compare import compare
from misas.study.diagnose import diagnose
from misas.study.study import Study
from misas.sweep.pairs import sensitivity_grid
from misas.sweep.sensitivity import sensitivity
from misas.sweep.tolerance import tolerance
from misas.transforms.intensity import Brightness, Gamma, Noise
from misas.transforms.spatial import Rotation
from misas.transforms.voxels import Dihedral, Flip, Resize
from misas.trust.trust import Trust
from misas.view import draw
from misas.widgets.html import to_html
from misas.widgets.look import as_frame, channel_windows

SHOTS = os.environ.get('MISAS_SHOTS')  # a folder: keep screenshots there, to look at them
NASTY = '</script><img src=x onerror="document.title=1"> & \'LV\''
QUIET = dict(progress=False)


def bands(k):
    "A network that goes by grey value and column: background and k classes."
    def predict(x):
        x = np.asarray(x)[:, 0]
        found = np.digitize(x, 300 + 350*np.arange(k)/k)*(np.arange(x.shape[-1]) < .8*x.shape[-1])
        return np.stack([found == j for j in range(k + 1)], 1).astype(np.float32)
    return predict


def two_classes(level, name): return as_model(ThresholdModel(level), classes=('background', 'disc'), name=name)


@lru_cache
def spots():
    rng = np.random.default_rng(0)
    def spot(i):
        s = disc((40, 40), radius=rng.uniform(6, 9), centre=(0, -6 + rng.uniform(-2, 2)))
        return s.replace(image=np.clip(s.image + rng.normal(scale=.03, size=s.image.shape), 0, 1), name=f'patient {i}')
    return [spot(i) for i in range(8)]


@lru_cache
def heart(shape=(120, 150), spacing=1.6): return short_axis(shape, spacing=spacing)


def sweep(transform, sample=None, **kw):
    sample = heart() if sample is None else sample
    return sensitivity(as_model(bands(3), classes=sample.classes), sample, transform, **QUIET, **kw)


@lru_cache
def noise(): return sweep(Noise([0, .05, .1, .3]), metrics=('dice', 'hausdorff95', 'volume'))


@lru_cache
def turned(): return sweep(Rotation(range(-90, 91, 15)), metrics=('dice', 'hausdorff95', 'volume'))


@lru_cache
def bright_stack():
    stack = short_axis_stack((48, 44, 9))
    stack = stack.replace(labels=stack.image[0] > 500, classes=('background', 'bright'))
    return sensitivity(as_model(bands(1), classes=stack.classes), stack, Brightness([.5, 1, 2]), **QUIET)


@lru_cache
def diagnosis(): return diagnose(two_classes(127., 'trained on 0 to 255'), spots(), borne=[Gamma([.5, 1, 2]), Noise([0, .3])], **QUIET)


@lru_cache
def studied():
    models = {name: two_classes(level, name) for name, level in (('a', .5), ('b', .6))}
    cases = [Case(s.name, s, info={'site': 'AB'[i % 2]}) for i, s in enumerate(spots())]
    return Study(tempfile.mkdtemp(), models, [Noise([0, .1, .3]), Gamma([.5, 1, 2])], metrics=('dice', 'hausdorff95')).run(cases, **QUIET)


@lru_cache
def finder():
    "A network without training: mean of 3 x 3 pixels, logit 20 (x - 0.5)."
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        net[0].weight[0], net[0].weight[1], net[0].bias[:] = 1/9, -1/9, torch.tensor([-.5, .5])
        net[2].weight[0, 0], net[2].weight[0, 1], net[2].bias[:] = 20, -20, 0
    return as_model(net, activation='sigmoid', classes=('background', 'disc'), name='finder')


@lru_cache
def trust(shape=(24, 28)):
    "Learned from discs, some of which are too faint."
    rng = np.random.default_rng(0)
    def one(i):
        middle = rng.uniform(-.1, .1, len(shape))*min(shape)
        s = disc(shape, radius=.3*min(shape), centre=middle, object=rng.uniform(.5, .9))
        return s.replace(image=s.image + rng.normal(0, .05, s.image.shape), name=f'disc {i}')
    known = [one(i) for i in range(21)]
    return Trust(finder(), known[1:], copies=1, changes=[(Rotation(), 12.), (Noise(), .01)], **QUIET), known[0]


def judged(): return trust()[0].of(trust()[1])


def maps(): return [attribute(two_classes(.5, 'threshold'), spots()[0], Target('disc'), k) for k in ('saliency', 'occlusion')]
def both(): return sensitivity_grid(as_model(bands(3), classes=heart().classes), heart(), (Rotation([-20, 0, 20]), Noise([0, .1])), **QUIET)
def without(): return diagnose(two_classes(.5, 'threshold'), [s.replace(labels=None) for s in spots()], tried=[Gamma([.5, 1, 2])], borne=[Noise([0, .3])], **QUIET)
def held(): return tolerance(as_model(bands(3), classes=heart().classes), heart(), Brightness([.5, 1, 2]), resolution=.3)
def lesions(): return find_instances(np.roll(spots()[0].labels, 3, 1), spots()[0])
def cases(): return spots()[:3]
def pair(): return {name: sensitivity(two_classes(level, name), spots()[0], Noise([0, .1, .3]), **QUIET) for name, level in (('a', .5), ('b', .6))}


KINDS = dict(sweep=noise, volumes=bright_stack, volume=short_axis_stack, grid=both, tolerance=held, maps=maps, diagnosis=diagnosis, untrue=without,
             study=studied, verdict=judged, compare=lambda: compare(studied()), lesions=lesions, cases=cases, pair=pair)


@pytest.fixture(scope='module')
def chromium():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        running = p.chromium.launch(executable_path=browser.browser(), args=browser.ARGS, ignore_default_args=['--hide-scrollbars'])
        yield running
        running.close()


class Page:
    "A page that is open, and what went wrong in it."
    def __init__(self, chromium, path, width=1280, height=900, **kw):
        self.wrong, self.context = [], chromium.new_context(viewport={'width': width, 'height': height}, **kw)
        self.context.set_offline(True)
        p = self.page = self.context.new_page()
        p.on('request', lambda r: None if r.url.startswith(('file:', 'data:', 'blob:')) else self.wrong.append(r.url))
        p.on('console', lambda m: self.wrong.append(m.text) if m.type in ('error', 'warning') and 'Canvas2D' not in m.text else None)
        p.on('pageerror', lambda e: self.wrong.append(str(e)))
        p.goto(f'file://{path}')
        self.path, scripts = path, kw.get('java_script_enabled', True)
        if scripts and p.locator('#misas').count(): p.wait_for_selector('#misas[data-shown]')

    def settled(self, i):
        "Wait until picture number `i` is painted."
        self.page.wait_for_selector(f'#misas[data-shown="{i}"]', timeout=8000)

    def until(self, script):
        "Wait until a script says true. (The page's security policy forbids playwright's own way of waiting.)"
        for _ in range(160):
            if self.page.evaluate(script): return
            self.page.wait_for_timeout(50)
        raise AssertionError(f'never true: {script}')

    def frame(self, name):
        "An array that the viewer shows now."
        text = self.page.evaluate('''name => { const data = document.querySelector('.mv').viewer.frame[name];
            return btoa(Array.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), c => String.fromCharCode(c)).join('')) }''', name)
        return np.frombuffer(b64decode(text), np.uint8)

    def seen(self):
        "What the canvas shows where a voxel has its middle: (H, W, 3), without letters and lines."
        shape, data = self.page.evaluate('''() => { const plane = document.querySelector('.mv').viewer.planes[0], cut = plane.cut, fit = plane.fit(cut);
            const pen = plane.canvas.getContext('2d'), all = pen.getImageData(0, 0, plane.canvas.width, plane.canvas.height), out = [];
            for (let j = 0; j < cut.height; j++) for (let i = 0; i < cut.width; i++) {
              const x = Math.floor(fit.left + (i + .5)*fit.x), y = Math.floor(fit.top + (j + .5)*fit.y);
              out.push(...all.data.slice(4*(y*all.width + x), 4*(y*all.width + x) + 3)); }
            return [[cut.height, cut.width, 3], out] }''')
        return np.array(data, np.uint8).reshape(shape)

    def fits(self): return self.page.evaluate('document.documentElement.scrollWidth == document.documentElement.clientWidth')
    def state(self, name): return self.page.evaluate(f"document.querySelector('.mv').viewer.state.{name}")
    def slider(self, k=0): return self.page.locator(f'#misas-axis-{k}')
    def shot(self, name):
        if SHOTS: self.page.screenshot(path=f'{SHOTS}/{name}.png', full_page=True)

    def close(self):
        self.context.close()
        assert not self.wrong, self.wrong


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
    "The page of each kind, written once."
    folder, done = tmp_path_factory.mktemp('pages'), {}
    def path(kind):
        more = {'cases': dict(model=two_classes(.5, 'threshold')), 'compare': dict(study=studied())}.get(kind, {})
        if kind not in done: done[kind] = to_html(KINDS[kind](), folder/f'{kind}.html', **more)
        return done[kind]
    return path


@pytest.fixture
def opened(chromium, paths, tmp_path):
    "Open the page of a kind, or of a result; at the end nothing may have gone wrong in it."
    pages = []
    def make(what, how=None, **kw):
        path = paths(what) if isinstance(what, str) else to_html(what, tmp_path/f'page{len(pages)}.html', **kw)
        pages.append(Page(chromium, path, **(how or {})))
        return pages[-1]
    yield make
    for p in pages: p.close()


# all kinds

@pytest.mark.parametrize('kind', KINDS)
def test_every_kind(opened, kind):
    "No scrollbar at any width, light and dark; the verdict first; tables folded; a name for everything."
    page = opened(kind)
    p = page.page
    for width, scheme in ((1280, 'dark'), (1920, 'light'), (390, 'light')):
        p.set_viewport_size(dict(width=width, height=900))
        p.emulate_media(color_scheme=scheme)
        p.wait_for_timeout(60)
        assert page.fits(), f'wider than {width}'
        bright = np.mean([int(c) for c in re.findall('[0-9]+', p.evaluate('getComputedStyle(document.body).backgroundColor'))])
        assert bright == 255 if scheme == 'light' else bright < 60
        page.shot(f'{kind}_{width}_{scheme}')
    for one in p.locator('details').all(): one.locator('summary').first.click()
    assert page.fits(), 'wider with its tables'
    first = p.evaluate("document.querySelector('h1').nextElementSibling.className")
    assert first.startswith('verdict') or kind == 'volume'
    assert p.evaluate("[...document.querySelectorAll('img')].every(o => o.alt) && document.documentElement.lang === 'en'")
    assert p.evaluate("[...document.querySelectorAll('#misas input, #misas select')].filter(o => o.offsetParent).every(o => o.labels.length && o.labels[0].textContent.trim())")


@pytest.mark.parametrize('kind', ['sweep', 'volumes', 'maps', 'diagnosis', 'compare'])
def test_without_scripts(opened, kind):
    "A picture and the verdict, also where scripts are forbidden."
    p = opened(kind, dict(java_script_enabled=False)).page
    assert p.locator('.verdict').is_visible() or kind == 'volume'
    picture = p.locator('img').first.bounding_box()
    assert picture['width'] > 200 and picture['height'] > 100
    assert not p.locator('#misas-controls').is_visible()


@pytest.mark.parametrize('kind', ['diagnosis', 'study', 'compare', 'verdict', 'grid', 'lesions'])
def test_figures_on_a_phone_and_in_the_dark(opened, kind):
    "Their text stays large enough, they are moved sideways, and say so; only images keep white paper in the dark."
    page = opened(kind)
    p = page.page
    shrunk = "Math.min(...[...document.querySelectorAll('figure img')].map(o => o.getBoundingClientRect().width/o.getAttribute('width')))"
    told = """[...document.querySelectorAll('figure')].map(o => [o.scrollWidth > o.clientWidth,
        (o.querySelector('.moves')?.getBoundingClientRect().width ?? 0) > 90])"""
    for width in (390, 700, 1280):
        p.set_viewport_size(dict(width=width, height=900))
        p.wait_for_timeout(60)
        assert page.fits() and all(moves == said for moves, said in p.evaluate(told))
        assert p.evaluate(shrunk) > .84  # so that 8 points are at least 9 pixels
    p.emulate_media(color_scheme='dark')
    for one in p.locator('figure img').all():
        turned = one.evaluate('o => getComputedStyle(o).filter') != 'none'
        assert turned == (kind not in ('grid', 'lesions'))
        if turned: assert np.asarray(Image.open(BytesIO(one.screenshot())).convert('L'))[3, 3] < 40


@pytest.mark.parametrize('kind', ['study', 'diagnosis', 'maps', 'cases'])
def test_room_beside_one_picture_is_for_its_controls(opened, kind):
    page = opened(kind)
    where = "const [a, b] = ['.mv', '#misas-controls'].map(name => document.querySelector(name).getBoundingClientRect())"
    page.until(f"(() => {{ {where}; return b.left >= a.right && b.top < a.top + 20 }})()")
    page.page.set_viewport_size(dict(width=390, height=900))
    page.until(f"(() => {{ {where}; return b.top >= a.bottom && a.width > 330 }})()")


@pytest.mark.parametrize('kind', ['sweep', 'diagnosis', 'volume'])
def test_print(opened, kind, tmp_path):
    "On paper: the picture that is seen, without the controls."
    page = opened(kind)
    data = page.page.pdf(path=tmp_path/'page.pdf', format='A4')
    assert data[:4] == b'%PDF' and len(data) > 20000 and data.count(b'/Subtype /Image') + data.count(b'/Subtype/Image') >= 1
    before = page.page.evaluate("document.querySelector('.mv').viewer.scale")
    page.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.page.evaluate("document.querySelector('.mv').viewer.scale") == before  # on the screen all is as it was
    page.page.set_viewport_size(dict(width=718, height=1047))                          # A4 with its margins
    page.page.emulate_media(media='print')
    picture = page.page.locator('#misas-printed')
    assert picture.bounding_box()['width'] > 200
    assert picture.bounding_box()['width'] == picture.evaluate('o => o.width')         # its letters are not shrunk
    assert not any(one.is_visible() for one in page.page.locator('.axis input, .show, .mv').all())
    page.shot(f'{kind}_print')


def test_printed_maps_have_their_legend(opened):
    page = opened('maps').page
    page.emulate_media(media='print')
    assert page.locator('.mv-legend').is_visible() and 'logit' in page.locator('.mv-legend').inner_text()
    assert not page.locator('.mv-save').is_visible() and not page.locator('.mv-stage').is_visible()


# a sweep

def test_noise_0_is_the_frame(opened):
    "Without loss: what is painted of noise 0 is the image in 8 bits, pixel for pixel, where nothing lies over it."
    page, result = opened('sweep'), noise()
    grey = as_frame(result.sample, None, channel_windows(result.sample.image)).grey
    assert (page.frame('grey') == grey.ravel()).all()
    for name in ('prediction', 'truth'): page.page.locator(f'#misas-shows-{name}').uncheck()
    bare = np.repeat(grey[0][..., None], 3, 2)
    seen, inside = page.seen(), np.ones(bare.shape[:2], bool)
    inside[-14:, :60] = False  # the scale bar lies there
    assert (seen[inside] == bare[inside]).all()
    page.page.locator('#misas-shows-prediction').check()
    filled = draw.overlay(Sample(grey.astype(np.float32)), result.predictions[0], window=(0, 255), scale=1)
    assert (page.seen()[inside] == filled[inside]).all()


def right(page, result, i, metric=0):
    "Are picture, words, numbers and marker those of value number `i`?"
    page.settled(i)
    p, text, same = page.page, result.transform.texts(result.values)[i], result.values.index(result.transform.identity)
    windows = channel_windows(result.sample.image)
    assert (page.frame('grey') == as_frame(result.samples[i], None, windows).grey.ravel()).all()
    if not result.sample.overlapping: assert (page.frame('prediction') == result.predictions[i].ravel()).all()
    assert page.slider().input_value() == str(i) and page.slider().get_attribute('aria-valuetext') == text
    assert p.locator('.axis output').first.inner_text() == text
    rows = p.locator('#misas-curves table tr').all()[1:]
    line = float(p.locator('#misas-curves .mark').get_attribute('x1'))
    for k, (row, score, before) in enumerate(zip(rows, result._table[i, :, metric], result._table[same, :, metric]), 1):
        got, change = row.locator('td').all_inner_texts()
        if np.isfinite(score): assert float(got.split()[0]) == pytest.approx(score, abs=6e-4)
        else: assert got == ('undefined' if np.isnan(score) else 'infinite')
        if np.isfinite([score, before]).all(): assert float(change) == pytest.approx(score - before, abs=6e-4)
        dot = p.locator(f'#misas-curves .dot[data-k="{k}"]')
        assert abs(float(dot.get_attribute('cx')) - line) < 30 if np.isfinite(score) else float(dot.get_attribute('cx')) < 0


def test_keyboard_and_mouse(opened):
    page, result = opened(turned()), turned()
    p, slider, same = page.page, page.slider(), result.values.index(0)
    right(page, result, same)
    slider.focus()
    for key, i in (('ArrowRight', same + 1), ('ArrowLeft', same), ('End', len(result.values) - 1), ('Home', 0)):
        p.keyboard.press(key)
        right(page, result, i)
    box = slider.bounding_box()
    p.mouse.move(box['x'] + .75*box['width'], box['y'] + box['height']/2)
    p.mouse.down()
    for k in range(20): p.mouse.move(box['x'] + (.75 - .03*k)*box['width'], box['y'] + box['height']/2)
    p.mouse.move(box['x'] + .25*box['width'], box['y'] + box['height']/2)
    p.mouse.up()
    right(page, result, 3)
    for j in range(len(result.metrics)):
        p.locator('#misas-metric').select_option(str(j))
        box = p.locator('#misas-curves svg').bounding_box()
        p.mouse.click(box['x'] + box['width'] - 2, box['y'] + .4*box['height'])
        right(page, result, len(result.values) - 1, j)
        p.mouse.click(box['x'] + box['width']*.16, box['y'] + .4*box['height'])
        right(page, result, 0, j)
    page.shot('turned')


def test_play(opened):
    page, result = opened(turned()), turned()
    p, at = page.page, lambda: int(page.slider().input_value())
    start = at()
    p.get_by_role('button', name='play').click()
    page.until(f'document.querySelector("#misas-axis-0").value > {start} + 1')
    assert p.locator('#misas-play').get_attribute('aria-pressed') == 'true'
    p.get_by_role('button', name='pause').click()
    stopped = at()
    p.wait_for_timeout(600)
    right(page, result, stopped)
    page.slider().focus()
    p.keyboard.press('End')
    p.keyboard.press(' ')
    page.until('document.querySelector("#misas").dataset.shown < 3')  # starts anew after the last value
    p.keyboard.press(' ')
    stopped = at()
    p.wait_for_timeout(600)
    right(page, result, stopped)
    p.locator('#misas-shows-prediction').focus()
    p.keyboard.press(' ')  # on a checkbox the space bar does not play
    assert not p.locator('#misas-shows-prediction').is_checked() and p.locator('#misas-play').get_attribute('aria-pressed') == 'false'


def test_all_controls_by_keyboard(opened):
    p, found = opened('sweep').page, []
    for _ in range(13):
        p.keyboard.press('Tab')
        found.append(p.evaluate('document.activeElement.id || document.activeElement.textContent.trim() || document.activeElement.tagName'))
    assert found[:4] == ['misas-play', 'misas-axis-0', 'CANVAS', 'PNG'] and found[7:13] == [
        'misas-shows-prediction', 'misas-shows-truth', 'misas-way', 'misas-opacity', 'In the picture', 'misas-metric'], found


def test_what_is_drawn(opened):
    page = opened(turned())
    p = page.page
    p.get_by_label('MYO').uncheck()
    assert page.state('hidden') == [2] and p.locator('#misas-curves g.curve[data-k="2"]').is_hidden()
    assert p.locator('#misas-curves g.curve[data-k="1"]').is_visible()
    p.locator('#misas-way').select_option('errors')
    p.locator('#misas-opacity').focus()
    p.keyboard.press('End')
    assert page.state('mode') == 'errors' and page.state('opacity') == 1
    assert p.locator('#misas-hatched').is_hidden()
    page.slider().focus()
    p.keyboard.press('Home')
    page.settled(0)
    assert p.locator('#misas-hatched').is_visible()


def test_cases_and_names(opened):
    "Words instead of numbers, and markup in every name."
    odd = heart((80, 80), 2.4)
    odd = odd.replace(name=NASTY, classes=('background', NASTY, 'M' + NASTY, '<b>LV</b>'))
    result = sweep(Flip(), odd)
    page = opened(result, title=NASTY)
    p = page.page
    assert p.title() == NASTY == p.locator('h1').inner_text() and p.locator('img').count() == 1
    assert p.locator('#misas-curves tbody th, #misas-curves table th[scope=row]').all_inner_texts() == [f'■ {c}' for c in odd.classes[1:]]
    page.slider().focus()
    p.keyboard.press('End')
    right(page, result, len(result.values) - 1)


@pytest.mark.parametrize('transform', [Brightness().at(.9) + Dihedral(), Rotation([10.01, 10.02]), Resize([.5, 1, 2])])
def test_words_close_values_and_sizes(opened, transform):
    "Turns change height and width, close values keep apart, and nothing moves where pixels have another size."
    result = sweep(transform, heart((80, 60), 2.4))
    page = opened(result)
    page.slider().focus()
    page.page.keyboard.press('Home')
    stage = page.page.locator('.mv-stage').bounding_box()
    for i in range(len(result.values)):
        right(page, result, i)
        assert page.page.locator('.mv-stage').bounding_box() == stage
        page.page.keyboard.press('ArrowRight')
    if transform.name == 'resize': assert page.page.evaluate("document.querySelector('.mv').viewer.extent[0][0]") == 60*2.4


def test_undefined_and_infinite(opened):
    image = np.full((40, 40), 100.)
    image[10:20, 10:20] = 500
    square = Sample(image, np.where(image > 200, 2, 0), spacing=1., classes=('background', 'never', 'square'), name='square')
    result = sensitivity(as_model(bands(2), classes=square.classes), square, Brightness([.25, .5, 1, 2, 4]), metrics=('hausdorff95', 'dice'), **QUIET)
    assert np.isinf(result._table).any() and np.isnan(result._table).any()
    page = opened(result)
    page.slider().focus()
    page.page.keyboard.press('Home')
    for i in range(5):
        right(page, result, i)
        page.page.keyboard.press('ArrowRight')
    page.page.emulate_media(color_scheme='dark')
    for name in ('undefined', 'infinite'):  # their symbols are as bright as their names
        inks = page.page.locator('#misas-curves g', has_text=name).last.evaluate("o => ['path', 'text'].map(k => o.querySelector(k))"
            ".map((k, n) => getComputedStyle(k)[n ? 'fill' : 'stroke'])")
        assert inks[0] == inks[1] == 'rgb(255, 255, 255)'


def test_classes_that_overlap_and_channels(opened):
    rings = np.stack([disc((64, 64), radius=r).labels > 0 for r in (26, 18, 9)])
    image = np.stack([100.*rings.sum(0), rings[0]/10])
    nested = Sample(image, rings, spacing=2., classes=('whole', 'core', 'centre'), name='nested discs')
    def logits(x): return np.concatenate([np.where(x[:, :1] > t, 5., -5.) for t in (50, 150, 250)], 1)
    result = sensitivity(as_model(logits, activation='sigmoid', classes=nested.classes), nested, Brightness([.4, .75, 1, 1.4]), **QUIET)
    page = opened(result, channel=1)
    right(page, result, result.values.index(1))
    assert page.state('channel') == 1 == int(page.page.locator('#misas-channel').input_value())
    page.page.locator('#misas-channel').select_option('0')
    assert page.state('channel') == 0
    page.page.get_by_role('checkbox', name='core').uncheck()
    grey = as_frame(nested, None, channel_windows(nested.image)).grey[:1].astype(np.float32)
    page.page.locator('#misas-shows-truth').uncheck()
    want = draw.overlay(Sample(grey), result.predictions[result.values.index(1)], window=(0, 255), classes=[1, 3], scale=1)
    assert (page.seen()[:40] == want[:40]).all()


# others

def test_slices_of_a_volume(opened):
    "Sliders, wheel and crosshair go through all slices, together."
    page = opened('volumes')
    p, shape = page.page, bright_stack().sample.shape
    assert page.frame('grey').size == np.prod(shape) and p.locator('#misas-slices input').count() == 3
    for one in p.locator('#misas-slices .axis').all(): assert one.bounding_box()['height'] < 40  # name, number and slider in a row
    axial = p.locator('#misas-slices input').first
    axial.focus()
    p.keyboard.press('End')
    assert page.state('voxel')[2] == shape[2] - 1
    p.locator('.mv canvas').first.focus()
    p.keyboard.press('ArrowDown')
    assert axial.input_value() == str(shape[2] - 2) and page.state('voxel')[2] == shape[2] - 2
    page.slider().focus()
    p.keyboard.press('End')
    page.settled(2)
    assert page.state('voxel')[2] == shape[2] - 2  # stays


def test_a_truth_alone_has_the_colours_of_its_classes(opened):
    "The words beside the box say how the truth is drawn."
    words = lambda kind: opened(kind).page.locator('label:has(#misas-shows-truth)').inner_text()
    assert words('volume') == 'truth (lines in the colours of the classes)' and words('sweep') == 'truth (white line)'


def test_one_slice(opened):
    page = opened(bright_stack(), axis=1, index=20)
    page.settled(1)
    width, height = page.page.evaluate("document.querySelector('.mv').viewer.extent[0]")
    assert (round(width, 3), round(height, 3)) == (48*1.8, 72)
    assert page.page.locator('#misas-slices input').count() == 0


def test_grid_has_two_sliders(opened):
    page = opened('grid')
    assert page.page.locator('#misas').get_attribute('data-shown') == '2'
    page.slider(1).focus()
    page.page.keyboard.press('End')
    page.settled(3)
    page.slider(0).focus()
    page.page.keyboard.press('Home')
    page.settled(1)
    assert page.page.locator('#misas-told').inner_text().startswith('dice: RV ')


def test_map_is_told(opened):
    "A map in colours, its value under the pointer, another map by the chooser."
    page = opened('maps')
    p = page.page
    box = p.locator('.mv canvas').first.bounding_box()
    p.mouse.move(box['x'] + box['width']*.35, box['y'] + box['height']/2)
    assert re.search('map [+0-9].*inside the target', p.locator('.mv-told').inner_text())
    p.locator('#misas-axis-0').select_option('1')
    page.settled(1)
    assert p.locator('#misas-told').inner_text().startswith('occlusion: ')
    p.locator('#misas-threshold').focus()
    p.keyboard.press('End')
    assert page.state('threshold') == 1


@pytest.mark.parametrize('kind', ['pair', 'compare'])
def test_a_line_between_two_predictions(opened, kind):
    page = opened(kind)
    assert page.state('wipe') == .5 and (page.frame('prediction') != page.frame('other')).any() == (kind == 'compare')
    page.page.locator('#misas-wipe').focus()
    page.page.keyboard.press('End')
    assert page.state('wipe') == 1
    page.page.locator('#misas-way').select_option('differ')
    assert page.state('mode') == 'differ'
    if kind == 'pair': assert page.page.locator('#misas-curves table th[scope=row]').all_inner_texts() == ['■ a', '■ b']


def test_diagnosis_of_a_clinician(opened):
    "What is said, what helps, and pictures before and after."
    page, d = opened('diagnosis'), diagnosis()
    p = page.page
    assert p.locator('.verdict').inner_text() == 'Fits after a change: intensity range 0 to 255.'
    assert p.locator('#misas-axis-1 option').all_inner_texts()[:2] == ['as it is', 'after intensity range 0 to 255']
    assert p.locator('#misas-told').inner_text() == 'dice: disc 0.00'
    p.locator('#misas-axis-1').select_option('1')
    page.settled(1)
    assert p.locator('#misas-told').inner_text() == 'dice: disc 1.00'
    assert d.code in p.locator('code').text_content() and not p.locator('table').first.is_visible()
    assert 'WITHOUT TRUTH' in opened('untrue').page.locator('.note').first.inner_text()


SEEN = "document.getElementById('misas-map').cells"


def in_cell(study, metric, cell, cases=None):
    "Scores of a cell by case, from the frame: name -> score."
    from misas.widgets.cohort import StudyMaps
    row, value = StudyMaps(study).places[cell]
    frame = study.frame
    here = frame[(frame.model == row.model) & (frame['transform'] == row.transform) & (frame.value == value) & (frame.metric == metric)]
    return {k: x for k, x in zip(here['sample'], here.score) if cases is None or k in cases}


def test_a_cell_opens_its_cases(opened):
    "Keyboard and mouse in the map; the gallery of the cell is that of the frame; a case with a picture opens in the viewer."
    page, study = opened('study'), studied()
    p = page.page
    page.until("document.querySelector('.mh') !== null")
    cells, tiles = p.locator('.mh button'), p.locator('#misas-tiles li')
    listed = lambda: [tuple(tile.inner_text().split('\n')) for tile in tiles.all()]
    def right(cell, metric='dice', best=False, cases=None):
        found = in_cell(study, metric, cell, cases)
        values = sorted(found.values(), reverse=best != (metric != 'dice'))
        assert [text.split()[0] for _, text in listed()] == [f'{x:.3f}' for x in values]
        assert all(f'{found[name]:.3f}' == text.split()[0] for name, text in listed())

    right(p.evaluate(f'{SEEN}.cell'))  # the cell with most harm is open
    cells.nth(2).click()
    right(2)
    assert p.locator('#misas-cell-title').inner_text() == 'a, noise 0.3: 8 cases, worst first'
    p.keyboard.press('ArrowDown')
    assert p.locator('.mh-told').inner_text().startswith('b, noise 0.3: dice of disc')
    right(2)  # not yet
    p.keyboard.press('Enter')
    right(5)
    p.locator('#misas-cells-order').select_option('1')
    right(5, best=True)
    p.locator('#misas-cells-order').select_option('2')
    assert [name for name, _ in listed()] == [s.name for s in spots()]
    p.locator('#misas-cells-order').select_option('0')
    p.locator('#misas-cells-metric').select_option(label='hausdorff95')
    right(5, 'hausdorff95')
    assert listed()[0][1].endswith('mm') and 'mm' in p.locator('.mh-told').inner_text()
    p.locator('#misas-cells-group').select_option(label='site: B')
    right(5, 'hausdorff95', cases={s.name for s in spots()[1::2]})
    p.locator('#misas-cells-group').select_option(label='all')
    p.locator('#misas-cells-metric').select_option(label='dice')

    tile = tiles.locator('button').first
    tile.focus()
    p.keyboard.press('Enter')
    assert tile.get_attribute('aria-pressed') == 'true'
    number = p.evaluate(f"{SEEN}.shown")
    page.settled(2*number)
    name, score = listed()[0]
    sample = next(s for s in spots() if s.name == name)
    changed = Noise()(sample, .3)
    assert (page.frame('prediction') == study.models['b'].segment(changed)[0].ravel()).all()
    assert p.locator('#misas-axis-0 option:checked').inner_text() == f'{name}: b, noise 0.3'
    assert p.locator('#misas-told').inner_text() == f'dice: disc {float(score):.2f}'
    p.locator('#misas-axis-1').select_option('1')
    page.settled(2*number + 1)
    assert (page.frame('prediction') == study.models['b'].segment(sample)[0].ravel()).all()
    assert p.evaluate("[...document.querySelectorAll('#misas-tiles button, #misas-tiles div')].every(e => e.tagName === 'BUTTON' || e.tabIndex < 0)")
    page.shot('study_cell')


def test_a_study_that_is_only_read(opened):
    "The map and its cases, and a sentence on why there are no pictures."
    page = opened(Study(studied().folder))
    p = page.page
    page.until("document.querySelectorAll('.mh button').length === 12")
    assert 'There are no pictures: the study was opened for reading.' in p.locator('main').inner_text()
    assert p.locator('#misas-tiles li').count() == 8 and p.locator('#misas-tiles button').count() == 0
    assert p.locator('#misas-cell-said').is_visible() and p.locator('#misas').count() == 0


def test_a_study_of_volumes_in_what_is_neither_good_nor_bad(opened):
    "Without pictures where nothing is worse; with them where something is, of all slices."
    balls = [disc((16, 14, 10), radius=r).replace(name=f'radius {r}') for r in (3, 4)]
    study = Study(tempfile.mkdtemp(), two_classes(.5, 'a'), Noise([0, .5]), metrics=('volume', 'dice')).run(balls, **QUIET)
    page = opened(study)
    page.until("document.querySelectorAll('#misas-tiles li').length === 2")
    assert 'There are no pictures: volume does not say which case is worse.' in page.page.locator('main').inner_text()
    assert page.page.locator('#misas-cells-order option').all_inner_texts() == ['lowest first', 'highest first', 'by name']
    page = opened(study, metric='dice')
    assert page.page.locator('#misas-tiles button').count() == 2 and page.page.locator('#misas-slices input').count() == 3


def test_many_cases_are_listed_in_parts(opened):
    small = [disc((16, 16), radius=r).replace(name=f'radius {r}') for r in np.linspace(3, 6, 30).round(2)]
    study = Study(tempfile.mkdtemp(), two_classes(.5, 'a'), Noise([0, .5])).run(small, **QUIET)
    page = opened(study, pictures=1)
    p = page.page
    page.until("document.querySelectorAll('#misas-tiles li').length === 24")
    p.locator('#misas-more').click()
    assert p.locator('#misas-tiles li').count() == 30 and p.locator('#misas-more').is_hidden()
    assert p.locator('#misas-tiles button').count() == 1 and p.locator('#misas-cells-metric').is_hidden()


def test_may_it_be_believed(opened, tmp_path):
    "The map in the viewer is where answers waver; how good is good enough can be said."
    verdict = judged()
    page = opened(verdict)
    p = page.page
    assert p.locator('.verdict').inner_text().startswith(('Believe', 'Look', 'Do not believe'))
    assert [text.split(' ')[0] for text in p.locator('main > ul li').all_inner_texts()] == ['Expected', 'For', 'Not']
    assert verdict.doubt.max() > 0 and p.locator('#misas-shows-map').is_checked()
    strict = opened(verdict, enough=.995).page.locator('.verdict')
    assert not strict.inner_text().startswith('Believe') and 'good' not in strict.get_attribute('class')
    for enough in (0, 1, 'good'):
        with pytest.raises(ValueError, match='enough must be the Dice'): to_html(verdict, tmp_path/'a.html', enough=enough)
    with pytest.raises(TypeError, match=r'to_html\(trust.of\(sample\), path\)'): to_html(trust()[0], tmp_path/'a.html')


def test_an_image_unlike_the_known_ones_is_not_believed(opened):
    learned, sample = trust()
    rng = np.random.default_rng(1)
    odd = learned.of(sample.replace(image=rng.uniform(-3, 3, sample.image.shape), name='noise only'))
    assert not odd.known and 'unlike' in opened(odd).page.locator('.verdict.bad').inner_text()


def test_a_figure_that_needs_more(tmp_path):
    "What has to be given is named."
    from misas.widgets.reports import summary_page
    class Needy:
        __module__ = 'misas.of_a_test'
        def summary(self): return 'x'
        def plot(self, sample, **look): raise AssertionError('not asked')
    with pytest.raises(TypeError, match=r'sample is needed for the figure: to_html\(result, path, sample=...\)'): summary_page(Needy())


def test_too_large_a_page(tmp_path):
    for what, cure in ((bright_stack(), 'one slice'), (short_axis_stack(), 'Resize'), (noise(), 'fewer values')):
        with pytest.raises(ValueError, match=f'more than limit=20000 .*{cure}'): to_html(what, tmp_path/'a.html', limit=20000)
    assert not list(tmp_path.iterdir())


def test_what_has_no_page(tmp_path):
    for what in (3, np.zeros(3), noise().frame, object()):
        with pytest.raises(TypeError, match='result must be what sensitivity.*got '): to_html(what, tmp_path/'a.html')


def test_twenty_volumes_open_at_once(opened):
    "Frames are unpacked when they are asked for: of 20 volumes one and its neighbours."
    rng = np.random.default_rng(0)
    volume = Sample(rng.normal(size=(1, 64, 64, 64)), (rng.random((64, 64, 64)) > .5).astype(int), spacing=1.)
    result = sensitivity(as_model(bands(1), classes=('background', 'a')), volume, Noise(np.linspace(0, .2, 20)), **QUIET)
    page = opened(result)
    kept = page.page.evaluate("performance.memory ? performance.memory.usedJSHeapSize : 0")
    assert kept < 150e6
    page.slider().focus()
    page.page.keyboard.press('End')
    page.settled(19)


def test_browser(monkeypatch, capsys):
    "Where the browser comes from, and what is said where there is none."
    monkeypatch.setenv('MISAS_CHROMIUM', '/no/browser')
    with pytest.raises(FileNotFoundError, match='MISAS_CHROMIUM=/no/browser'): browser.browser()
    monkeypatch.setenv('MISAS_CHROMIUM', sys.executable)
    assert browser.browser() == sys.executable
    monkeypatch.delenv('MISAS_CHROMIUM')
    monkeypatch.setattr(browser, 'NAMES', ('no-such-browser',))
    monkeypatch.setattr(browser, '_playwrights', lambda: None)
    assert browser.browser() is None
    with pytest.raises(RuntimeError, match='no Chromium was found'):
        with browser.chromium(): pass
