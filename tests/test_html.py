"""Pages of `to_html` in a real browser, without a network: do the controls do what they say?"""
import io
import os
import sys

import browser
import numpy as np
import pytest
from PIL import Image

from misas.data.phantom import disc, short_axis, short_axis_stack
from misas.data.sample import Sample
from misas.models.adapt import as_model
from misas.sweep.sensitivity import sensitivity
from misas.transforms.intensity import Brightness
from misas.transforms.spatial import Rotation
from misas.transforms.voxels import Dihedral, Flip, Resize
from misas.view import plot
from misas.widgets.html import to_html

SHOTS = os.environ.get('MISAS_SHOTS')  # a folder: keep screenshots there, to look at them
NASTY = '</script><img src=x onerror="document.title=1"> & \'LV\''


def bands(k):
    "A network that goes by grey value and column: background and k classes."
    def predict(x):
        x = np.asarray(x)[:, 0]
        found = np.digitize(x, 300 + 350*np.arange(k)/k)*(np.arange(x.shape[-1]) < .8*x.shape[-1])
        return np.stack([found == j for j in range(k + 1)], 1).astype(np.float32)
    return predict


@pytest.fixture(scope='module')
def chromium():
    with browser.chromium() as b: yield b


class Page:
    "A page that is open, and what went wrong in it."
    def __init__(self, chromium, path, width=1200, height=1000, **kw):
        self.wrong, self.context = [], chromium.new_context(viewport={'width': width, 'height': height}, **kw)
        self.context.set_offline(True)
        p = self.page = self.context.new_page()
        p.on('request', lambda r: None if r.url.startswith(('file:', 'data:')) else self.wrong.append(r.url))
        p.on('console', lambda m: self.wrong.append(m.text) if m.type in ('error', 'warning') else None)
        p.on('pageerror', lambda e: self.wrong.append(str(e)))
        p.goto(f'file://{path}')
        self.path = path
        p.wait_for_selector('#picture[data-shown]')

    def settled(self, i):
        "Wait until value number `i` is painted."
        self.page.wait_for_selector(f'#picture[data-shown="{i}"]', timeout=5000)
        self.page.wait_for_timeout(60)
        assert self.page.locator('#value').input_value() == str(i)

    def pixels(self):
        "The canvas itself, pixel by pixel."
        from base64 import b64decode
        return np.asarray(Image.open(io.BytesIO(b64decode(self.page.evaluate("document.querySelector('#picture').toDataURL()").split(',')[1]))).convert('RGB')).astype(int)

    def until(self, script):
        "Wait until a script says true. (The page's security policy forbids playwright's own way of waiting.)"
        for _ in range(100):
            if self.page.evaluate(script): return
            self.page.wait_for_timeout(50)
        raise AssertionError(f'never true: {script}')

    def seen(self):
        "What is on the screen where the canvas is."
        self.page.mouse.move(1, 1)
        return np.asarray(Image.open(io.BytesIO(self.page.locator('#picture').screenshot())).convert('RGB')).astype(int)

    def shot(self, name):
        if SHOTS: self.page.screenshot(path=f'{SHOTS}/{name}.png', full_page=True)

    def close(self):
        self.context.close()
        assert not self.wrong, self.wrong


@pytest.fixture
def opened(chromium, tmp_path):
    "Write a page and open it; at the end nothing may have gone wrong in it."
    pages = []

    def make(result, width=1200, height=1000, **kw):
        pages.append(Page(chromium, to_html(result, tmp_path/f'page{len(pages)}.html', **kw), width, height))
        return pages[-1]
    yield make
    for p in pages: p.close()


@pytest.fixture(scope='module')
def turned():
    heart = short_axis((120, 150), spacing=1.6)
    return sensitivity(as_model(bands(3), classes=heart.classes), heart, Rotation(range(-90, 91, 15)), metrics=('dice', 'hausdorff95', 'volume'), progress=False)


def want(result, i, **kw):
    shown = plot.flat(result.samples[i], result.predictions[i], like=result.sample)
    return plot.overlay(*shown, window=plot.grey_window(result.sample.image), **kw).astype(int)


def far(a, b):
    "Mean difference of two pictures, the second scaled to the first by repeating pixels."
    rows, cols = ((np.arange(n) + .5)*m/n for n, m in zip(a.shape, b.shape[:2]))
    return np.abs(a - b[rows.astype(int)][:, cols.astype(int)]).mean()


def right(page, result, i, metric=0, **kw):
    "Are picture, words, numbers and marker those of value number `i`?"
    page.settled(i)
    p, text = page.page, result.transform.text(result.values[i]).replace('\n', ' ')
    apart = [np.abs(page.pixels() - o).mean() if (o := want(result, j, **kw)).shape == page.pixels().shape else np.inf for j in range(len(result.values))]
    assert apart[i] < 3 and np.argmin(apart) == i, apart
    assert far(page.seen(), want(result, i, **kw)) < 6
    assert p.locator('#shown').inner_text() == text == p.locator('#value').get_attribute('aria-valuetext') == p.locator('#here').inner_text()
    for row, score, same in zip(p.locator('#now tbody tr').all(), result._table[i, :, metric], result._table[result.values.index(result.transform.identity), :, metric]):
        got, change = row.locator('td').all_inner_texts()
        if np.isfinite(score): assert float(got.split()[0]) == pytest.approx(score, abs=6e-4)
        else: assert got == ('undefined' if np.isnan(score) else 'infinite')
        if np.isfinite([score, same]).all(): assert float(change) == pytest.approx(score - same, abs=6e-4)
    figure = p.locator('figure:visible')
    assert figure.count() == 1
    line = float(figure.locator('.mark').get_attribute('x1'))
    for k, score in enumerate(result._table[i, :, metric], 1):
        dot = figure.locator(f'.dot[data-k="{k}"]')
        if np.isfinite(score): assert abs(float(dot.get_attribute('cx')) - line) < 30 and float(dot.get_attribute('cy')) > 0
        else: assert float(dot.get_attribute('cx')) < 0
    assert p.locator('#all tr.now th').text_content() == text


def test_slider(opened, turned):
    page = opened(turned)
    p, slider, same = page.page, page.page.locator('#value'), turned.values.index(0)
    right(page, turned, same)
    page.shot('desktop')
    slider.focus()
    for key, i in (('ArrowRight', same + 1), ('ArrowLeft', same), ('End', len(turned.values) - 1), ('Home', 0)):
        p.keyboard.press(key)
        right(page, turned, i)
    box = slider.bounding_box()
    p.mouse.click(box['x'] + .75*box['width'], box['y'] + box['height']/2)
    page.settled(9)
    right(page, turned, 9)
    p.mouse.move(box['x'] + .75*box['width'], box['y'] + box['height']/2)
    p.mouse.down()
    for k in range(20): p.mouse.move(box['x'] + (.75 - .03*k)*box['width'], box['y'] + box['height']/2)
    p.mouse.move(box['x'] + .25*box['width'], box['y'] + box['height']/2)
    p.mouse.up()
    right(page, turned, 3)
    page.shot('desktop_turned')


def test_layers(opened, turned):
    page = opened(turned, exact=True)
    p = page.page
    same = lambda **kw: np.abs(page.pixels() - want(turned, turned.values.index(0), **kw)).max() <= 2
    paint = lambda: p.wait_for_timeout(80)
    assert same()
    p.get_by_label('MYO').uncheck(); paint()
    assert same(classes=[1, 3])
    assert p.locator('figure:visible g.curve[data-k="2"]').is_hidden() and p.locator('figure:visible g.curve[data-k="1"]').is_visible()
    p.get_by_label('prediction (filled)').uncheck(); paint()
    image = turned.sample
    assert np.abs(page.pixels() - plot.overlay(image, classes=[1, 3])).max() <= 1
    p.get_by_label('truth (lines)').uncheck(); paint()
    assert np.abs(page.pixels() - plot.overlay(image.replace(labels=None))).max() <= 1
    for name in ('truth (lines)', 'prediction (filled)', 'MYO'): p.get_by_label(name).check()
    p.get_by_label('opacity').focus()
    p.keyboard.press('End'); paint()
    assert same(alpha=1)
    p.keyboard.press('Home'); paint()
    assert same(alpha=0)
    assert p.locator('#hatched').is_hidden()
    p.locator('#value').focus(); p.keyboard.press('Home'); page.settled(0)
    assert p.locator('#hatched').is_visible()


def test_curve_and_metric(opened, turned):
    page = opened(turned, drop={'hausdorff95': 5})
    p = page.page
    for j, m in enumerate(turned.metrics):
        p.locator('#metric').select_option(str(j))
        drawing = p.locator('figure:visible svg')
        box, place = drawing.bounding_box(), p.evaluate('misas.places[2]/misas.width')
        p.mouse.click(box['x'] + place*box['width'] + 3, box['y'] + .4*box['height'])
        right(page, turned, 2, j)
        p.mouse.click(box['x'] + box['width'] - 2, box['y'] + .4*box['height'])
        right(page, turned, len(turned.values) - 1, j)
        assert p.locator('.summary:visible').count() == 1 and m in p.locator('.summary:visible').inner_text()
    p.mouse.move(box['x'] + .5*box['width'], box['y'] + 100); p.mouse.down(); p.mouse.move(box['x'] + box['width']*p.evaluate('misas.places[4]/misas.width'), box['y'] + 120); p.mouse.up()
    right(page, turned, 4, 2)
    p.locator('summary').click()
    assert p.locator('#all tbody tr').count() == len(turned.values) and p.locator('#all').is_visible()
    page.shot('scores')


def test_play(opened, turned):
    page = opened(turned)
    p, at = page.page, lambda: int(page.page.locator('#value').input_value())
    start = at()
    p.get_by_role('button', name='play').click()
    page.until(f'document.querySelector("#value").value > {start} + 1')
    assert p.locator('#play').get_attribute('aria-pressed') == 'true'
    p.get_by_role('button', name='pause').click()
    stopped = at()
    p.wait_for_timeout(700)
    right(page, turned, stopped)
    p.locator('#value').focus()
    p.keyboard.press('End')
    p.keyboard.press(' ')
    page.until('document.querySelector("#picture").dataset.shown < 3')  # starts anew after the last value
    p.keyboard.press(' ')
    stopped = at()
    p.wait_for_timeout(700)
    right(page, turned, stopped)


def test_all_controls_by_keyboard_and_with_a_name(opened, turned):
    p = opened(turned).page
    found = []
    for _ in range(14):
        p.keyboard.press('Tab')
        found.append(p.evaluate('document.activeElement.id || document.activeElement.tagName'))
    assert found[:10] == ['play', 'value', 'prediction', 'truth', 'opacity', 'class-1', 'class-2', 'class-3', 'metric', 'SUMMARY'], found
    assert p.evaluate("[...document.querySelectorAll('input, select')].every(o => o.labels.length && o.labels[0].textContent.trim())")
    assert p.evaluate("document.documentElement.lang === 'en' && document.title.length > 0 && [...document.querySelectorAll('canvas, svg')].every(o => o.getAttribute('aria-label'))")
    p.locator('#prediction').focus()
    p.keyboard.press(' ')                                                                   # on a checkbox the space bar does not play
    assert not p.locator('#prediction').is_checked() and p.locator('#play').get_attribute('aria-pressed') == 'false'


def test_phone(opened, turned):
    page = opened(turned, width=380, height=800)
    p = page.page
    assert p.evaluate('document.documentElement.scrollWidth <= innerWidth'), 'wider than the phone'
    right(page, turned, turned.values.index(0))
    assert p.locator('#picture').bounding_box()['width'] > 300
    page.shot('phone')


def test_cases_and_names(opened):
    "Words instead of numbers, and markup in every name."
    heart = short_axis((80, 80), spacing=2.4)
    odd = heart.replace(name=NASTY, classes=('background', NASTY, 'M' + NASTY, '<b>LV</b>'))
    result = sensitivity(as_model(bands(3), classes=odd.classes), odd, Flip(), progress=False)
    page = opened(result, title=NASTY)
    p = page.page
    assert p.title() == NASTY == p.locator('h1').inner_text() and p.locator('img').count() == 0
    assert p.locator('#now tbody th').all_inner_texts() == list(odd.classes[1:])
    p.locator('#value').focus()
    p.keyboard.press('End')
    right(page, result, len(result.values) - 1)
    page.shot('cases')


def test_words_and_what_they_are_compared_with(opened):
    "Quarter turns change height and width; a stack with a fixed part is not unchanged at its identity."
    heart = short_axis((80, 60), spacing=2.4)
    model = as_model(bands(3), classes=heart.classes)
    result = sensitivity(model, heart, Brightness().at(.9) + Dihedral(), progress=False)
    page = opened(result)
    p = page.page
    told = lambda p: (p.locator('#now thead th').all_inner_texts()[-1], p.locator('figure:visible svg').text_content())
    head, drawing = told(p)
    assert head == 'change from the score with dihedral unchanged' and 'with dihedral unchanged' in drawing
    p.locator('#value').focus()
    p.keyboard.press('Home')
    for i in range(len(result.values)):
        right(page, result, i)
        p.keyboard.press('ArrowRight')
    page.shot('turns')
    result = sensitivity(model, heart, Brightness().at(.9) + Rotation([-30, 0, 30]), progress=False)
    head, drawing = told(opened(result).page)
    assert head == 'change from the score with rotation unchanged' and 'with rotation unchanged' in drawing


def test_values_that_are_close(opened):
    heart = short_axis((60, 60), spacing=2.4)
    result = sensitivity(as_model(bands(3), classes=heart.classes), heart, Rotation([10.01, 10.02]), progress=False)
    p = opened(result).page
    texts = [p.locator('#shown').inner_text()]
    p.locator('#value').focus()
    for _ in range(2):
        p.keyboard.press('ArrowRight')
        texts.append(p.locator('#shown').inner_text())
    assert texts == ['0°', '10.01°', '10.02°'] and p.locator('#all tbody th').all_text_contents() == texts


def test_labels_that_do_not_count_and_channels(opened):
    "Labels of 255 outside of what is valid, and a second channel in grey values of its own."
    heart = short_axis((60, 80), spacing=2.4)
    inside = np.zeros((60, 80), bool)
    inside[5:50, 5:70] = True
    odd = heart.replace(image=np.concatenate([heart.image, heart.image[:, ::-1]/1000]), labels=np.where(inside, heart.labels, 255), valid=inside)
    page = opened(sensitivity(as_model(bands(3), classes=heart.classes), odd, Brightness([.5, 1]), progress=False), channel=1, exact=True)
    p = page.page
    assert p.locator('#hatched').is_visible()
    p.get_by_label('prediction (filled)').uncheck()
    p.wait_for_timeout(80)
    direct = plot.overlay(odd.replace(labels=odd.labels*inside), channel=1, window=plot.grey_window(odd.image[1:])).astype(int)
    assert direct.max() == 255 and np.abs(page.pixels() - direct).max() <= 1
    page.shot('channel')


def test_volume_and_sizes(opened):
    "A coronal slice in its proportions; images of different numbers of pixels."
    stack = short_axis_stack((48, 44, 9))
    stack = stack.replace(labels=stack.image[0] > 500, classes=('background', 'bright'))
    result = sensitivity(as_model(bands(1), classes=stack.classes), stack, Brightness([.5, 1, 2]), progress=False)
    page = opened(result, axis=1, index=20, exact=True)
    box = page.page.locator('#picture').bounding_box()
    assert box['height']/box['width'] == pytest.approx(9*8/(48*1.8), rel=.02)
    direct = plot.overlay(stack, result.predictions[1], index=20, axis=1, window=plot.grey_window(stack.image)).astype(int)
    assert np.abs(page.pixels() - direct).max() <= 2
    heart = short_axis((60, 80), spacing=2.4)
    sizes = sensitivity(as_model(bands(3), classes=heart.classes), heart, Resize([.5, 1, 2]), progress=False)
    page = opened(sizes)
    box = page.page.locator('#picture').bounding_box()
    page.page.locator('#value').focus()
    page.page.keyboard.press('Home')
    right(page, sizes, 0)
    assert page.page.locator('#picture').bounding_box() == pytest.approx(box, abs=1)         # it stays as large as it is in the patient
    page.shot('volume')


def test_classes_that_overlap(opened):
    "Three nested discs, a mask each: fillings blend, every class has its box, its outline and its curve."
    rings = np.stack([disc((64, 64), radius=r).labels > 0 for r in (26, 18, 9)])
    nested = Sample(100.*rings.sum(0), rings, spacing=2., classes=('whole', 'core', 'centre'), name='nested discs')

    def logits(x): return np.concatenate([np.where(x > t, 5., -5.) for t in (50, 150, 250)], 1)
    result = sensitivity(as_model(logits, activation='sigmoid', classes=nested.classes), nested, Brightness([.4, .75, 1, 1.4]), progress=False)
    same = result.values.index(1)
    assert (result._table[same] == 1).all() and result.foreground == nested.classes
    page = opened(result, exact=True)
    p = page.page
    right(page, result, same)
    assert np.abs(page.pixels() - want(result, same)).max() <= 2
    assert p.locator('#now tbody th').all_inner_texts() == list(nested.classes)
    page.shot('overlapping')
    p.locator('#class-2').uncheck()
    p.wait_for_timeout(80)
    assert np.abs(page.pixels() - want(result, same, classes=[1, 3])).max() <= 2
    assert p.locator('figure:visible g.curve[data-k="2"]').is_hidden()
    p.locator('#class-2').check()
    p.locator('#value').focus()
    p.keyboard.press('Home')
    for i in range(len(result.values)):
        right(page, result, i)
        p.keyboard.press('ArrowRight')


def test_undefined_and_infinite(opened):
    image = np.full((40, 40), 100.)
    image[10:20, 10:20] = 500
    square = Sample(image, np.where(image > 200, 2, 0), spacing=1., classes=('background', 'never', 'square'), name='square')
    result = sensitivity(as_model(bands(2), classes=square.classes), square, Brightness([.25, .5, 1, 2, 4]), metrics=('hausdorff95', 'dice'), progress=False)
    assert np.isinf(result._table).any() and np.isnan(result._table).any()
    page = opened(result)
    p = page.page
    p.locator('#value').focus()
    p.keyboard.press('Home')
    for i in range(5):
        right(page, result, i)
        p.keyboard.press('ArrowRight')
    page.shot('undefined')


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
