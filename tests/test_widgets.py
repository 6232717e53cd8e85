"""The widgets in a real JupyterLab: every widget notebook is opened in Chromium, run, and used with mouse and keyboard.

What is seen is compared with the frames rendered directly. Times from a key press to the painted picture are shown at the end of the run.
"""
import base64
import io
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser import ARGS, HIDDEN, browser
from PIL import Image
from playwright.sync_api import sync_playwright

import nbrun
from misas.data.slices import cuts
from misas.view import draw
from misas.view.maps import overlay_map
from misas.widgets.linked import coded
from misas.widgets.look import as_frame, channel_windows

DONE = 'ALL CELLS ARE DONE'
KERNEL = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
SHOTS = Path(os.environ.get('MISAS_SHOTS') or tempfile.mkdtemp())  # screenshots, to be looked at
TIMES = {}  # what -> milliseconds from key press to painted picture; conftest.py shows them


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def settings(root):
    "Settings of a JupyterLab of our own: every cell stays in the page, no news, no updates."
    for plugin, text in (('notebook-extension/tracker', '{"windowingMode": "none"}'),
                         ('apputils-extension/notification', '{"fetchNews": "false", "checkForUpdates": false}')):
        file = root/f'.settings/@jupyterlab/{plugin}.jupyterlab-settings'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return dict(os.environ, JUPYTERLAB_SETTINGS_DIR=str(root/'.settings'), JUPYTER_CONFIG_DIR=str(root/'.config'), JUPYTER_RUNTIME_DIR=str(root/'.runtime'),
                IPYTHONDIR=str(root/'.ipython'), OMP_NUM_THREADS='1')


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "The address of a JupyterLab, its folder, and a browser."
    root, port = tmp_path_factory.mktemp('lab'), free_port()
    cmd = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--ip=127.0.0.1', f'--ServerApp.root_dir={root}',
           '--IdentityProvider.token=', '--ServerApp.disable_check_xsrf=True', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
           '--LabApp.expose_app_in_browser=True']
    with open(root/'lab.log', 'w') as log: server = subprocess.Popen(cmd, env=settings(root), stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(400):
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api', timeout=1)
                break
            except OSError: time.sleep(.25)
        else: raise RuntimeError(f'JupyterLab did not start:\n{(root/"lab.log").read_text()[-2000:]}')
        with sync_playwright() as p:
            chromium = p.chromium.launch(executable_path=browser(), args=ARGS, ignore_default_args=HIDDEN)
            yield f'http://127.0.0.1:{port}', root, chromium
            chromium.close()
    finally:
        server.terminate()
        server.wait(20)


def run_all(page):
    "Run all cells, and wait until the last has run (again)."
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.locator('[data-command="runmenu:run-all"]').click()
    last = page.locator('.jp-Notebook .jp-CodeCell').last
    try:
        page.wait_for_function("done => { const c = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')].pop(); "
                               "return c.innerText.includes(done) && window.__ran !== c.querySelector('.jp-InputPrompt').innerText }", arg=DONE, timeout=180_000)
    except Exception as e:
        wrong = page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]').all_inner_texts()
        raise AssertionError(f'the notebook did not run to its end in JupyterLab: {wrong[-1:] or e}') from None
    page.evaluate("text => { window.__ran = text }", last.locator('.jp-InputPrompt').inner_text())
    page.wait_for_timeout(1500)


def of_lab(error):
    "Was it thrown by JupyterLab's own code? Its splash screen is sometimes removed twice."
    return 'removeChild' in str(error) and 'jlab_core' in (error.stack or '')


def opened(lab, name, extra=''):
    "A page with a notebook (None: an empty one) of which all cells have run. `extra`: a cell more at its end."
    url, root, chromium = lab
    nb = nbrun.read(nbrun.NBS/f'{name}.ipynb') if name else dict(cells=[], metadata=KERNEL, nbformat=4, nbformat_minor=5)
    more = [dict(cell_type='code', id=f'last{i}', metadata={}, outputs=[], execution_count=None, source=s) for i, s in enumerate([extra, 'print("ALL CELLS", "ARE DONE")']) if s]
    file = root/f'{Path(name).name if name else "empty"}.ipynb'
    file.write_text(json.dumps({**nb, 'cells': nb['cells'] + more}))
    page = chromium.new_page(viewport={'width': 1300, 'height': 1300})
    page.errors = []
    page.on('pageerror', lambda e: page.errors.extend([] if of_lab(e) else [str(e)[:300]]))
    page.goto(f'{url}/lab/tree/{file.name}?reset', timeout=120_000)
    page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=120_000)
    page.wait_for_selector('#jp-main-statusbar >> text=/\\| Idle/', timeout=120_000)
    page.wait_for_timeout(1000)
    run_all(page)
    check_fit(page, file.stem)
    return page


TOO_WIDE = '''() => {
  const named = e => `${e.tagName}.${String(e.className.baseVal ?? e.className)} (${e.scrollWidth} in ${e.clientWidth})`;
  const wrong = [document.documentElement].filter(e => e.scrollWidth > e.clientWidth);
  for (const area of document.querySelectorAll('.jp-OutputArea-output.jupyter-widgets, .jupyter-widgets-view')) {
    for (const e of [area, ...area.querySelectorAll('*')]) {
      const scrolls = ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth;
      const picture = ['CANVAS', 'IMG', 'svg'].includes(e.tagName) && e.clientWidth > 0;
      const edge = area.getBoundingClientRect().right + 1;
      if (e.clientWidth > 0 && scrolls || picture && e.getBoundingClientRect().right > edge) wrong.push(e);
    }
  }
  return wrong.map(named) }'''


def check_fit(page, name):
    "No scrollbar and no cut picture in any widget of a page, narrow and wide, light and dark."
    if page.locator('.jupyter-widgets').count() == 0: return
    for width in (1280, 1920):
        page.set_viewport_size(dict(width=width, height=1300))
        for theme in ('Dark', 'Light'):
            page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", f'JupyterLab {theme}')
            page.wait_for_function("dark => (document.body.dataset.jpThemeLight === 'false') === dark", arg=theme == 'Dark')
            until(page, lambda: not page.evaluate(TOO_WIDE), 10, lambda: f'{name}, {width} wide, {theme}: {page.evaluate(TOO_WIDE)}')
            if 'MISAS_SHOTS' in os.environ: shots(page, f'{name}-{width}-{theme}')
    page.set_viewport_size(dict(width=1300, height=1300))


def shots(page, name):
    "A picture of each widget, to be looked at; named after the test where the notebook has no name."
    page.wait_for_function("!document.querySelector('#jupyterlab-splash')")  # it is shown when the theme changes
    test = re.sub(r'.*::test_|\W* \(.*', '', os.environ['PYTEST_CURRENT_TEST'])
    name = name.replace('empty', test, 1) if name.startswith('empty-') else name
    for k, panel in enumerate(page.locator('.jp-OutputArea-output:has(.jupyter-widgets)').all()):
        panel.screenshot(path=str(SHOTS/f'{name}-{k}.png'))


class View:
    "One widget on a page: the first, second ... element of a class."
    def __init__(self, page, n=0): self.page, self.n = page, n
    def __getitem__(self, cls): return self.page.locator(f'.{cls}').nth(self.n)

    def seen(self, cls):
        "A picture as it is on the screen."
        image = self[cls].locator('img').first
        image.scroll_into_view_if_needed()
        return np.asarray(Image.open(io.BytesIO(image.screenshot())).convert('RGB')).astype(float)

    def settled(self, cls):
        "The picture when it has stopped changing."
        old = self.seen(cls)
        for _ in range(40):
            self.page.wait_for_timeout(150)
            new = self.seen(cls)
            if new.shape == old.shape and np.abs(new - old).max() < 1: return new
            old = new
        return old

    def drag(self, cls, dx):
        "Take the handle of a slider and move it."
        handle = self[cls].locator('.noUi-handle').first
        handle.scroll_into_view_if_needed()
        b = handle.bounding_box()
        x, y = b['x'] + b['width']/2, b['y'] + b['height']/2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for k in range(1, 11): self.page.mouse.move(x + dx*k/10, y)
        self.page.mouse.up()

    def press(self, cls, key, times=1):
        "Press a key again and again, as soon as the slider has moved: the page does that, however slow the kernel is."
        handle = self[cls].locator('.noUi-handle').first
        where = lambda: handle.evaluate('handle => handle.parentElement.style.transform')
        handle.focus()
        for _ in range(times):
            before = where()
            handle.press(key)
            for _ in range(500):
                if where() != before: break
                self.page.wait_for_timeout(10)
            else: raise AssertionError(f'{cls} stays at {before} when {key} is pressed')

    def click(self, cls, x, y):
        "Click a picture at a place, given as fractions."
        self[cls].scroll_into_view_if_needed()
        b = self[cls].locator('img').first.bounding_box()
        self.page.mouse.click(b['x'] + x*b['width'], b['y'] + y*b['height'])


def until(page, check, seconds=30, why=lambda: 'it never held'):
    "Wait for something to hold: how long an answer takes belongs to the machine."
    end = time.time() + seconds
    while True:
        try: held = check()
        except AssertionError:
            if time.time() > end: raise
            held = False
        if held is None or held: return held
        assert time.time() < end, why()
        page.wait_for_timeout(200)


def nearest(seen, pictures):
    "Which of some pictures is on the screen, and how far (mean grey values) it and the next one are from it."
    size = seen.shape[1::-1]
    far = [np.abs(np.asarray(Image.fromarray(p).resize(size, Image.BILINEAR)).astype(float) - seen).mean() for p in pictures]
    order = np.argsort(far)
    return int(order[0]), far[order[0]], far[order[1]] if len(far) > 1 else np.inf


WATCH = """([cls, n, slider]) => {
  const sliders = document.querySelectorAll('.' + slider), out = document.querySelectorAll('.' + cls)[n], handle = sliders[n] ?? sliders[0];
  const t = window.__times = {start: null, ms: []};
  handle.addEventListener('keydown', () => { t.start = performance.now() }, true);
  const painted = () => requestAnimationFrame(() => requestAnimationFrame(() => {
    if (t.start !== null) { t.ms.push(performance.now() - t.start); t.start = null } }));
  for (const img of out.querySelectorAll('img')) img.addEventListener('load', painted);
  const viewer = out.querySelector('.mv')?.viewer;
  if (viewer) { const draw = viewer.draw.bind(viewer); viewer.draw = () => { draw(); painted() } }
}"""


def measure(view, slider, picture, what, keys):
    "Milliseconds from each key press on a slider to the painted picture."
    page = view.page
    page.evaluate(WATCH, [picture, view.n, slider])
    handle = page.locator(f'.{slider}').nth(view.n if page.locator(f'.{slider}').count() > view.n else 0).locator('.noUi-handle').first
    handle.focus()
    for i, key in enumerate(keys):
        handle.press(key)
        for _ in range(1500):
            if page.evaluate('window.__times.ms.length') > i: break
            page.wait_for_timeout(10)
        page.wait_for_timeout(60)
    ms = page.evaluate('window.__times.ms')
    assert len(ms) >= .8*len(keys), f'{what}: {len(keys)} key presses painted {len(ms)} pictures'
    TIMES[what] = ms
    return statistics.median(ms)


# --- the sweep

def phantom_sweep():
    "The result of api/51, made in the same way."
    from misas.data.phantom import ThresholdModel, short_axis
    from misas.data.sample import Sample
    from misas.models.adapt import as_model
    from misas.sweep.sensitivity import sensitivity
    from misas.transforms.intensity import Brightness
    heart = short_axis((128, 128), spacing=2.4, seed=2)
    heart = Sample(heart.image, heart.image[0] > 500, spacing=2.4, classes=('background', 'bright'), name='phantom')
    return sensitivity(as_model(ThresholdModel(500.), classes=heart.classes), heart, Brightness(), [*Brightness.values, .8],
                       metrics=('dice', 'hausdorff95'), progress=False)


SHOWN = """([cls, n]) => { const v = document.querySelectorAll('.' + cls)[n].querySelector('.mv')?.viewer;
  return v && v.frame && {shape: v.frame.shape, state: v.state, grey: Array.from(v.frame.grey), prediction: v.frame.prediction && Array.from(v.frame.prediction)} }"""
MARKED = """([cls, n]) => { const c = document.querySelectorAll('.' + cls)[n].querySelector('.mc')?.curves;
  return c && {x: Number(c.svg.querySelector('.mark').getAttribute('x1')), places: c.curve.places, label: c.curve.label} }"""


def value_shown(page, result, n=0):
    "The value whose frame the viewer has: image and prediction are those of it alone, bit for bit."
    found = page.evaluate(SHOWN, ['O-value', n])
    if not found: return None
    windows, seen = channel_windows(result.sample.image), np.array(found['grey'], np.uint8)
    for i, value in enumerate(result.values):
        frame = as_frame(result.samples[i], result.predictions[i], windows)
        same = frame.grey.size == seen.size and np.array_equal(frame.grey.ravel(), seen)
        if same and np.array_equal(frame.prediction.ravel(), found['prediction']): return value


def test_sweep(lab):
    page, result = opened(lab, 'api/widgets/sweep'), phantom_sweep()
    view, values = View(page), result.values
    label = lambda: view['S-value'].locator('.widget-readout').inner_text()

    def check(value, metric='hausdorff95'):
        "Slider, picture, marker and numbers are those of a value."
        marked, number = page.evaluate(MARKED, ['O-curve', 0]), result.frame[(result.frame.value == value) & (result.frame.metric == metric)].score.item()
        return (label() == result.transform.text(value) and value_shown(page, result) == value and metric in marked['label']
                and marked['x'] == marked['places'][values.index(value)] and f'{number:.3f}' in view['O-curve'].inner_text())

    until(page, lambda: check(.8))                                                          # where the notebook left it
    view.press('S-value', 'ArrowRight', 2)
    until(page, lambda: check(values[values.index(.8) + 2]))
    view.drag('S-value', -60)
    until(page, lambda: check(next(v for v in values if result.transform.text(v) == label())))
    drawing = view['O-curve'].locator('svg')
    drawing.scroll_into_view_if_needed()
    box, marked = drawing.bounding_box(), page.evaluate(MARKED, ['O-curve', 0])
    page.mouse.click(box['x'] + marked['places'][1]/430*box['width'], box['y'] + box['height']/2)             # click on the curve
    until(page, lambda: check(values[1]))
    view['M-metric'].locator('select').select_option('dice')
    until(page, lambda: check(values[1], 'dice'))
    view.press('S-value', 'ArrowRight', values.index(1.) - 1)
    until(page, lambda: check(1., 'dice'))                             # where something is found
    view['C-class'].locator('input').uncheck()
    state = lambda: page.evaluate(SHOWN, ['O-value', 0])['state']
    until(page, lambda: state()['hidden'] == [1])
    canvas = view['O-value'].locator('canvas').first
    colours = lambda: np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert('RGB')).astype(float)
    coloured = lambda: np.abs(colours()[..., 0] - colours()[..., 2]).mean()
    until(page, lambda: coloured() < 1)                                # without its only class the picture is grey
    view['C-class'].locator('input').check()
    until(page, lambda: coloured() > 1)
    view['M-filled'].get_by_text('errors').click()
    until(page, lambda: state()['mode'] == 'errors')
    view['M-filled'].get_by_text('fill').click()

    view['T-value'].locator('input').fill('0.6')                       # a value that was not in the sweep
    view['T-value'].locator('input').press('Enter')
    view['B-predict'].click()
    more = result.with_values([.6])
    until(page, lambda: label() == '0.6' and value_shown(page, more) == .6)
    view.press('S-value', 'ArrowRight', len(more.values) - 1 - more.values.index(.6))      # the last value is in reach, too
    until(page, lambda: value_shown(page, more) == more.values[-1])
    view['T-value'].locator('input').fill('-1')
    view['T-value'].locator('input').press('Enter')
    view['B-predict'].click()
    until(page, lambda: 'domain of brightness' in page.locator('.misas-message').first.inner_text())
    page.screenshot(path=str(SHOTS/'sweep.png'))
    shut_down(page)
    view.press('S-value', 'ArrowLeft', 3)                              # nobody is there, and it moves
    until(page, lambda: value_shown(page, more) == more.values[-4])
    marked = page.evaluate(MARKED, ['O-curve', 0])
    assert marked['x'] == marked['places'][-4]
    assert not page.errors, page.errors
    page.close()


def shut_down(page):
    "End the kernel of the notebook."
    page.get_by_role('menuitem', name='Kernel', exact=True).click()
    page.locator('[data-command="kernelmenu:shutdown"]').click()
    page.wait_for_selector('#jp-main-statusbar >> text=/No Kernel|Unknown|Disconnected|Dead/', timeout=60_000)


def test_sweep_of_a_volume(lab):
    from misas.data.phantom import ThresholdModel, short_axis_stack
    from misas.models.adapt import as_model
    from misas.sweep.sensitivity import sensitivity
    from misas.transforms.spatial import Rotation
    page = opened(lab, 'api/widgets/sweep')
    volume = short_axis_stack((64, 60, 9))
    volume = volume.replace(labels=(volume.image[0] > 500).astype(np.uint8), classes=('background', 'bright'), name='stack')
    result = sensitivity(as_model(ThresholdModel(500.), classes=volume.classes), volume, Rotation([-30, 0, 30]), progress=False)
    view, state = View(page, 1), lambda: page.evaluate(SHOWN, ['O-value', 1])['state']
    until(page, lambda: value_shown(page, result, 1) == 30 and state()['voxel'][0] == 40)   # where the notebook left it
    slider = View(page)  # the first widget is 2D and has no slices
    slider.press('S-sagittal', 'ArrowLeft', 3)
    until(page, lambda: state()['voxel'][0] == 37)
    view.press('S-value', 'ArrowLeft')
    until(page, lambda: value_shown(page, result, 1) == 0 and state()['voxel'][0] == 37)
    page.screenshot(path=str(SHOTS/'sweep_volume.png'))
    assert not page.errors, page.errors
    page.close()


# --- how fast

LARGE = """
from IPython.display import display
from misas.all import *
from misas.widgets.sweep import SweepExplorer
model = as_model(phantom.ThresholdModel(500.), classes=('background', 'bright'))
image = phantom.short_axis((256, 256)).image
display(SweepExplorer(sensitivity(model, Sample(image, image[0] > 500, classes=model.classes), Rotation(), range(-100, 100), progress=False)))
volume = phantom.disc((128, 128, 128), radius=45., object=800., background=200.)
turned = sensitivity(model, volume.replace(classes=model.classes), Rotation([0, 10, 20, 30]), progress=False)
display(SweepExplorer(turned))
"""


def test_key_press_to_painted_picture(lab):
    "Shown, not asserted: times belong to the machine. What must hold is that every key press paints a picture."
    page = opened(lab, None, LARGE)
    flat, deep = View(page, 0), View(page, 1)
    measure(flat, 'S-value', 'O-value', 'next value, 256 x 256, of 200', ['ArrowRight']*30)
    measure(deep, 'S-axis2', 'O-value', 'next slice of a volume of 128^3', ['ArrowLeft']*30)
    measure(deep, 'S-value', 'O-value', 'next value of a volume of 128^3, first visit', ['ArrowRight']*3)
    measure(deep, 'S-value', 'O-value', 'next value of a volume of 128^3, seen before', ['ArrowLeft', 'ArrowRight']*8)
    assert not page.errors, page.errors
    page.close()


MANY = """
from IPython.display import display
from misas.all import *
from misas.widgets.sweep import SweepExplorer
volume = phantom.disc((128, 128, 128), radius=45., object=800., background=200.)
model = as_model(phantom.ThresholdModel(500.), classes=('background', 'bright'))
many = sensitivity(model, volume.replace(classes=model.classes), Rotation(), range(-40, 60, 5), progress=False)
"""


def test_a_large_sweep_opens(lab):
    "20 values of 128^3: what a page holds of it, while its frames come one by one."
    page = opened(lab, None, MANY)
    devtools = page.context.new_cdp_session(page)

    def usage():
        "Bytes that the page holds, arrays too."
        devtools.send('HeapProfiler.collectGarbage')
        found = devtools.send('Runtime.getHeapUsage')
        return found['usedSize'] + found['backingStorageSize']

    before = usage()
    page.locator('.jp-Notebook .jp-CodeCell').last.locator('.cm-content').click()
    page.keyboard.press('Control+A')
    page.keyboard.insert_text('display(SweepExplorer(many))')
    page.keyboard.press('Shift+Enter')
    start = time.time()
    page.wait_for_function("() => document.querySelector('.O-value .mv')?.viewer?.scale", timeout=60_000)
    TIMES['a sweep of 20 values of 128^3 is opened'] = [1e3*(time.time() - start)]
    view, number = View(page), "() => document.querySelector('.O-value .mv').viewer.frame.number"
    view.press('S-value', 'ArrowRight', 11)
    view.press('S-value', 'ArrowLeft', 19)
    until(page, lambda: page.evaluate(number) == 0)
    assert (usage() - before)/1e6 < 150
    assert not page.errors, page.errors
    page.close()


# --- the live explorer

LIVE = """
from IPython.display import display
from misas.all import *
from misas.widgets.live import LiveExplorer
model = as_model(phantom.ThresholdModel(500.), classes=('background', 'bright'))
image = phantom.short_axis((128, 128), spacing=2.4, seed=2).image
heart = Sample(image, image[0] > 500, spacing=2.4, classes=model.classes, name='phantom')
display(LiveExplorer(heart, model, transforms=[Brightness(), Rotation()]))
"""


def frame_seen(page, cls, sample, prediction, windows):
    "Are a frame, and the prediction on it, what is painted: voxel for voxel, and their bytes those that were made?"
    found, frame = page.evaluate(SHOWN, [cls, 0]), as_frame(sample, prediction, windows)
    if not found or found['shape'] != list(sample.shape) or (found['prediction'] is None) != (prediction is None): return False
    grey = sample.replace(image=frame.grey, labels=None, valid=None)
    wanted = draw.overlay(grey, prediction, window=(0, 255), scale=1)
    counts = np.ones(sample.shape, bool) if sample.valid is None else sample.valid  # the others are hatched
    return np.array_equal(found['grey'], frame.grey.ravel()) and np.array_equal(voxels(page, 0, cls)[counts], wanted[counts])


def test_live(lab):
    "Both pictures are the frames rendered directly; the kernel is asked for predictions only; hands move both."
    from misas.data.phantom import ThresholdModel, short_axis
    from misas.data.sample import Sample
    from misas.metrics.scores import score
    from misas.models.adapt import as_model
    from misas.transforms.intensity import Brightness
    from misas.transforms.spatial import Rotation
    from misas.widgets.part import slider_range
    page = opened(lab, None, LIVE)
    view, model = View(page), as_model(ThresholdModel(500.), classes=('background', 'bright'))
    image = short_axis((128, 128), spacing=2.4, seed=2).image
    heart = Sample(image, image[0] > 500, spacing=2.4, classes=model.classes, name='phantom')
    windows = channel_windows(image)
    number = lambda k: float(view[f'N-part{k}'].inner_text().rstrip('°'))
    values = [float(f'{2**(-3*slider_range(Brightness())[2]):.12g}'), 4*slider_range(Rotation())[2]]          # three and four steps
    moved = (Brightness() + Rotation())(heart, values)

    def shown(cls, sample, predicted):
        return frame_seen(page, cls, sample, model.label(sample)[0] if predicted else None, windows)

    until(page, lambda: shown('O-before', heart, False) and number(1) == 1 and number(2) == 0)
    view.press('S-part2', 'ArrowRight', 4)
    view.press('S-part1', 'ArrowLeft', 3)
    until(page, lambda: [view[f'N-part{k}'].inner_text() for k in (1, 2)] == [t.text(v) for t, v in zip((Brightness(), Rotation()), values)])
    until(page, lambda: shown('O-after', moved, False) and shown('O-before', heart, False))               # moved, and not predicted unasked
    until(page, lambda: 'not predicted' in view['N-scores'].inner_text() and 'not predicted yet' in view['O-after'].inner_text())
    view['B-predict'].click()
    until(page, lambda: shown('O-after', moved, True) and shown('O-before', heart, True))
    got = score(model.label(moved)[0], moved.labels, n_classes=2, valid=moved.valid).score.item()
    until(page, lambda: f'{got:.3f}' in view['N-scores'].inner_text() and f'{abs(got - 1):.3f}' in view['N-scores'].inner_text())
    move_both(page, view)
    view['B-reset1'].click()
    until(page, lambda: number(1) == 1 and 'not predicted' in view['N-scores'].inner_text())
    view['B-remove2'].click()
    until(page, lambda: page.locator('.S-part2').count() == 0 and shown('O-after', heart, True))            # nothing is changed any more, and that was predicted
    page.screenshot(path=str(SHOTS/'live.png'))
    no_bars(page)
    assert not page.errors, page.errors
    page.close()


def move_both(page, view):
    "Window, zoom, and a place that is pointed at: what is done to one picture happens to both, and the kernel has no part in it."
    state = lambda cls: page.evaluate(VIEWED, [cls, 0])['state']
    zoom = lambda cls: page.evaluate("cls => { const p = document.querySelector(`.${cls} .mv`).viewer.planes[0]; return [p.zoom, ...p.pan] }", cls)
    told = lambda cls: view[cls].locator('.mv-told').inner_text()
    place = lambda text: re.search(r'voxel (\d+, \d+)', text)[1]
    canvas = view['O-after'].locator('canvas')
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box['x'] + .3*box['width'], box['y'] + .4*box['height']
    page.mouse.move(x, y)
    until(page, lambda: place(told('O-before')) == place(told('O-after')) and 'prediction' in told('O-before'))
    page.mouse.down(button='right')
    page.mouse.move(x + 30, y + 10)
    page.mouse.up(button='right')
    until(page, lambda: state('O-before')['window'] == state('O-after')['window'] != [0, 255])
    canvas.dispatch_event('wheel', dict(deltaY=-100, ctrlKey=True, clientX=x, clientY=y))
    until(page, lambda: zoom('O-before') == zoom('O-after') and zoom('O-after')[0] > 1)
    page.screenshot(path=str(SHOTS/'live_zoomed.png'))
    page.mouse.dblclick(x, y)
    assert page.locator('.lm-Menu').count() == 0                                                    # the right button is the window's
    until(page, lambda: zoom('O-before') == [1, 0, 0] and state('O-before')['window'] == [0, 255])
    view['M-filled'].get_by_text('errors').click()
    until(page, lambda: state('O-before')['mode'] == state('O-after')['mode'] == 'errors')
    until(page, lambda: 'only predicted' in view['N-legend'].inner_text())
    view['M-filled'].get_by_text('fill').click()
    until(page, lambda: state('O-after')['mode'] == 'fill')


STACK = """
from misas.all import *
from misas.widgets.stack import StackExplorer
volume = phantom.short_axis_stack((64, 60, 9))
StackExplorer(volume, [Resize().at(.5), Brightness()])
"""


def test_stack_of_a_volume(lab):
    "Pictures of other voxels: slices at the same place; three directions; a picture that cannot be made disappears."
    from misas.data.phantom import short_axis_stack
    from misas.data.slices import best_slice
    page = opened(lab, None, STACK)
    view, volume = View(page), short_axis_stack((64, 60, 9))
    seen = lambda cls: page.evaluate(VIEWED, [cls, 0])['state']['voxel']
    begin = [best_slice(volume.labels, axis) for axis in range(3)]
    until(page, lambda: seen('O-before') == begin)
    shape = page.evaluate(SHOWN, ['O-after', 0])['shape']
    there = lambda voxel: [int((i + .5)*m/n) for i, n, m in zip(voxel, volume.shape, shape)]
    until(page, lambda: seen('O-after') == there(begin))
    canvas = view['O-before'].locator('canvas')
    assert canvas.count() == 1
    canvas.hover()
    page.mouse.wheel(0, 100)
    up = [*begin[:2], begin[2] + 1]
    until(page, lambda: seen('O-before') == up and seen('O-after') == there(up))
    view['M-direction'].locator('select').select_option('all three')
    until(page, lambda: view['O-before'].locator('canvas').count() == view['O-after'].locator('canvas').count() == 3)
    no_bars(page)
    page.screenshot(path=str(SHOTS/'stack_volume.png'))
    view.press('S-sagittal', 'ArrowRight', 2)
    up[0] += 2
    until(page, lambda: seen('O-before') == up and seen('O-after') == there(up))
    assert not page.errors, page.errors
    page.close()


@pytest.mark.parametrize('name, extra', [('embed', "EmbeddingExplorer(places, 'height')"), ('stack', '')])
def test_its_notebook_fits(lab, name, extra):
    "Widgets that no other test here opens: see `check_fit`."
    page = opened(lab, f'api/widgets/{name}', extra)
    assert page.locator('.jupyter-widgets canvas, .jupyter-widgets img').count() > 0
    assert not page.errors, page.errors
    page.close()


# --- kernels and observers

PAGES = 'html', 'reports', 'stage', 'sweep_pages', 'inside_pages', 'study_pages', 'trust_pages'
PARTS = 'base', 'look', 'part', 'answers', 'tiles', 'curve', 'heat', 'svg', *PAGES  # notebooks that show no panel


@pytest.mark.parametrize('name', [p.stem for p in sorted((nbrun.NBS/'api/widgets').glob('*.ipynb'))])
def test_real_kernel(name):
    "Widget notebooks run in a kernel of their own, where display, comms and the event loop are real."
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(nbrun.NBS/f'api/widgets/{name}.ipynb', 4)
    NotebookClient(nb, timeout=300, kernel_name='python3', resources={'metadata': {'path': str(nbrun.NBS/'api/widgets')}}).execute()
    assert 'application/vnd.jupyter.widget-view+json' in json.dumps(nb) or name in PARTS


def test_running_a_cell_again_leaves_nothing_behind(lab):
    page = opened(lab, None, LIVE + """
from misas.widgets.base import open_widgets
print('widgets kept:', open_widgets())""")
    kept = lambda: int(page.locator('.jp-OutputArea-output:has-text("widgets kept:")').last.inner_text().split(':')[-1])
    first = kept()
    run_all(page)
    assert kept() == first and first > 20
    page.close()


# --- the gallery

CASES = """
from misas.all import *
model = as_model(phantom.ThresholdModel(500.), classes=('background', 'bright'))
def case(k):
    s = phantom.short_axis((96, 96), spacing=3., seed=k)
    return Noise(seed=k)(Sample(s.image, s.image[0] > 500, spacing=3., classes=model.classes, name=f'phantom {k}'), .02*(k % 15))
"""


def test_gallery(lab):
    from misas.metrics.scores import score
    page = opened(lab, None, CASES + 'from misas.widgets.gallery import GalleryExplorer\n'
                  "GalleryExplorer.from_cases(map(case, range(30)), model, metrics=('dice', 'precision'), progress=False)")
    view, here = View(page), {}
    exec(CASES, here)
    cases = [here['case'](k) for k in range(30)]
    found = [here['model'].label(s)[0] for s in cases]
    got = {m: np.array([score(p, s.labels, m, n_classes=2).score.item() for p, s in zip(found, cases)]) for m in ('dice', 'precision')}
    frames = [as_frame(s, p) for s, p in zip(cases, found)]
    title = lambda i: view[f'B-tile{i}'].inner_text().strip()

    def enlarged(i):
        "Does the viewer show a case, voxel for voxel?"
        seen = page.evaluate(SHOWN, ['O-chosen', 0])
        return all(np.array_equal(getattr(frames[i], what).ravel(), seen[what]) for what in ('grey', 'prediction'))

    def check(order):
        "The tiles stand in an order, with their scores, and the right one is enlarged when it is clicked."
        until(page, lambda: all(title(i) == cases[order[i]].name for i in (0, 1, 7, 23)))
        for i in (3, 11):
            view.click(f'O-tile{i}', .5, .5)
            until(page, lambda i=i: enlarged(order[i]) and cases[order[i]].name in view['N-title'].inner_text()
                  and f'{got["dice"][order[i]]:.3f}' in view['N-chosen'].inner_text())

    worst = np.argsort(got['dice'], kind='stable')
    check(worst)
    view['D-score'].locator('select').select_option('precision of bright')
    check(np.argsort(got['precision'], kind='stable'))
    view['D-order'].locator('select').select_option('as given')
    check(np.arange(30))
    view['B-next'].click()
    until(page, lambda: title(0) == 'phantom 24' and 'page 2 of 2' in view['N-page'].inner_text())
    view['B-tile2'].focus()                                                   # with the keyboard
    page.keyboard.press('Enter')
    until(page, lambda: 'phantom 26' in view['N-title'].inner_text() and enlarged(26))
    page.screenshot(path=str(SHOTS/'gallery.png'))
    assert not page.errors, page.errors
    page.close()


# --- the volume

VOLUME = """
from misas.all import *
from misas.widgets.volume import VolumeExplorer
volume = phantom.short_axis_stack((80, 70, 20), spacing=(2., 2., 4.))
VolumeExplorer(volume)
"""


def test_volume(lab):
    "Three views in the proportions of the patient; wheel, crosshair and sliders move all, also when the kernel is gone."
    page = opened(lab, None, VOLUME)
    view = View(page)
    canvases = page.locator('.O-volume canvas')
    canvases.first.wait_for(timeout=30_000)
    assert canvases.count() == 3
    told = lambda: tuple(map(int, re.findall(r'voxel\s+(\d+), (\d+), (\d+)', view['N-voxel'].inner_text())[0]))
    start = told()
    axial = canvases.nth(0).bounding_box()
    def listens():
        page.mouse.move(axial['x'] + axial['width']/2, axial['y'] + axial['height']/2)
        return 'voxel' in page.locator('.mv-told').inner_text()
    until(page, listens)  # or the wheel would turn before there is a hand for it
    page.mouse.wheel(0, 100)
    until(page, lambda: told() == (*start[:2], start[2] + 1))  # the kernel heard of it
    page.mouse.click(axial['x'] + axial['width']*.25, axial['y'] + axial['height']*.5)
    until(page, lambda: abs(told()[0] - 20) <= 1 and told()[2] == start[2] + 1)
    assert 'voxel' in page.locator('.mv-told').inner_text()
    assert page.evaluate('[...document.querySelectorAll(".O-volume, .O-volume *")].every(e => e.scrollWidth <= e.clientWidth + 1 || !e.clientWidth)')
    page.screenshot(path=str(SHOTS/'volume.png'))
    shut_down(page)
    last = told()
    picture = lambda: np.asarray(Image.open(io.BytesIO(canvases.nth(0).screenshot())).convert('L')).astype(float)
    before = picture()
    view.press('S-axial', 'ArrowRight', 3)
    until(page, lambda: np.abs(picture() - before).mean() > .5)
    assert told() == last  # nobody was there to say so
    page.screenshot(path=str(SHOTS/'volume.png'))
    assert not page.errors, page.errors
    page.close()


# --- attributions

ATTRIBUTIONS = """
import numpy as np, torch
from misas.attribution.attribute import attribute
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.data.phantom import short_axis, short_axis_stack
from misas.widgets.attribution import AttributionExplorer
def bump(net):
    "Is a voxel brighter than its surroundings? Where it is bright itself, more so."
    with torch.no_grad():
        for p in net.parameters(): p.zero_()
        net[0].weight[0, 0], net[0].weight[0, 0, 5, 5] = -1/121/np.prod(net[0].kernel_size[2:]), 1
        net[2].weight[1, 0] = 1
    return as_model(net, classes=('background', 'cavity'))
conv = torch.nn.Conv2d, torch.nn.Conv3d
net2, net3 = (bump(torch.nn.Sequential(c(1, 1, (11, 11, 3)[:n], padding=(5, 5, 1)[:n]), torch.nn.ReLU(), c(1, 2, 1))) for c, n in zip(conv, (2, 3)))
heart, stack = short_axis((256, 256), spacing=1.2), short_axis_stack((80, 70, 20), spacing=(2., 2., 4.))
cavity = lambda s: Target('cavity', s.labels == 3)
flat = AttributionExplorer([attribute(net2, heart, cavity(heart), m) for m in ('saliency', 'input_x_gradient')])
deep = AttributionExplorer(attribute(net3, stack, cavity(stack), 'input_x_gradient'))
"""


VOXELS = """([cls, n, plane]) => document.querySelectorAll('.' + cls)[n]?.querySelector('.mv')?.viewer?.planes[plane]?.voxels.toDataURL()"""
VIEWED = """([cls, n]) => { const v = document.querySelectorAll('.' + cls)[n]?.querySelector('.mv')?.viewer;
  return v?.frame && {state: v.state, map: v.frame.map && Array.from(v.frame.map), legend: v.legend?.root.innerText, told: v.told.innerText} }"""


def voxels(page, plane=0, cls='O-viewer', n=0):
    "What a viewer shows of a cut, a pixel a voxel, without lines."
    data = page.evaluate(VOXELS, [cls, n, plane])
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(',')[1]))).convert('RGB'))


def printed_map(mine, plane=0):
    "The same, drawn at once."
    cut = dict(window=draw.grey_window(mine.sample.image))
    if mine.sample.ndim == 3:
        axis = cuts(mine.sample.affine)[plane][1]
        cut |= dict(axis=axis, index=mine.voxel[axis])
    return overlay_map(mine.sample, mine.shown_map, limit=mine.limit, scale=1, **cut, **mine.look.colours)


def same_colours(seen, wanted):
    "All but the few that lie at a threshold, to the last of the 16 bits."
    at = [((np.arange(n) + .5)*m/n).astype(int) for n, m in zip(seen.shape, wanted.shape[:2])]  # a pixel a voxel
    return (np.abs(seen.astype(int) - wanted[np.ix_(*at)]).max(-1) > 2).mean() < .002


def no_bars(page):
    "Nothing has to be scrolled sideways."
    wide = """[...document.querySelectorAll('.O-viewer, .O-viewer *, .O-close, .jp-OutputArea-output')]
              .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1).map(e => e.className)"""
    assert not page.evaluate(wide)


def test_attribution(lab):
    "Every control changes the picture in the page to the right one, voxel by voxel; without a kernel, too."
    page = opened(lab, None, ATTRIBUTIONS + 'flat')
    view, here = View(page), {}
    exec(ATTRIBUTIONS, here)
    mine = here['flat']
    page.locator('.O-viewer canvas').first.wait_for(timeout=30_000)
    readout = lambda cls: view[cls].locator('.widget-readout').inner_text()
    told = lambda: tuple(map(int, re.findall(r'voxel\s+(\d+), (\d+)', view['N-voxel'].inner_text())[0]))
    close = lambda: same_colours(voxels(page), printed_map(mine))

    def becomes(**changes):
        "The page shows the picture with these settings, which is not the one before."
        before = printed_map(mine)
        for k, v in changes.items(): getattr(mine, k).value = v
        assert (printed_map(mine) != before).any()
        until(page, close)

    def without_smoothing():
        view['M-map'].locator('select').select_option('input_x_gradient')
        becomes(method='input_x_gradient')
        view.press('S-threshold', 'ArrowRight', 15)
        until(page, lambda: readout('S-threshold') == '30%')
        becomes(threshold=.3)
        view['M-sign'].get_by_text('lowers').click()
        becomes(sign='negative')
        view['M-sign'].get_by_text('both signs').click()
        becomes(sign='both')
        view.press('S-limit', 'ArrowLeft', 3)
        becomes(percentile=95.)
        view.press('S-opacity', 'ArrowLeft', 8)
        becomes(opacity=.45)

    until(page, close)
    no_bars(page)
    without_smoothing()
    until(page, lambda: mine.words['of |map| inside the target'] in view['N-voxel'].inner_text())
    view.press('S-smooth', 'ArrowRight', 8)
    becomes(smooth=4.)
    view['C-map'].locator('input').uncheck()
    becomes(shown=False)
    view['C-map'].locator('input').check()
    becomes(shown=True)
    for box, trait in (('C-target', 'region'), ('C-voxel', 'cross')):
        view[box].locator('input').uncheck()
        until(page, lambda: not page.evaluate(VIEWED, ['O-viewer', 0])['state'][trait])
    canvas = page.locator('.O-viewer canvas').first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.click(box['x'] + .5*box['width'], box['y'] + .4*box['height'])  # the picture is in the middle
    until(page, lambda: abs(told()[0] - round(.4*256)) <= 2 and abs(told()[1] - 128) <= 2)
    mine.go(told())
    until(page, lambda: mine.words['map here'] in view['N-voxel'].inner_text())
    found = page.evaluate(VIEWED, ['O-viewer', 0])
    assert mine.attribution.unit in found['legend'] and 'map' in found['told'] and 'the target' in found['told']
    view['B-peak'].click()
    mine.go_to_peak()
    until(page, lambda: told() == mine.voxel)
    page.screenshot(path=str(SHOTS/'attribution.png'))
    measure(view, 'S-opacity', 'O-viewer', 'opacity of a map of 256 x 256', ['ArrowRight', 'ArrowLeft']*10)
    page.set_viewport_size(dict(width=1920, height=1300))
    page.wait_for_timeout(500)
    no_bars(page)
    assert not page.errors, page.errors
    page.close()

    mine = {}
    exec(ATTRIBUTIONS, mine)
    mine = mine['flat']
    page = opened(lab, None, ATTRIBUTIONS + 'flat')
    view = View(page)
    until(page, close)
    shut_down(page)
    without_smoothing()
    assert set(page.errors) <= {'Cannot send'}, page.errors  # buttons of ipywidgets want to tell the kernel of a click
    page.close()


def test_attribution_of_a_volume(lab):
    "Three pictures through one voxel; wheel, click, slider and buttons move them."
    page = opened(lab, None, ATTRIBUTIONS + 'deep')
    view, here = View(page), {}
    exec(ATTRIBUTIONS, here)
    mine = here['deep']
    page.locator('.O-viewer canvas').first.wait_for(timeout=30_000)
    told = lambda: tuple(map(int, re.findall(r'voxel\s+(\d+), (\d+), (\d+)', view['N-voxel'].inner_text())[0]))

    def check():
        "All three are those of the voxel that the numbers are of."
        assert told() == mine.voxel and mine.words['map here'] in view['N-voxel'].inner_text()
        for plane in range(3): assert same_colours(voxels(page, plane), printed_map(mine, plane))

    until(page, check)
    no_bars(page)
    view['B-peak'].click()
    mine.go_to_peak()
    until(page, check)
    axial = page.locator('.O-viewer canvas').first
    axial.scroll_into_view_if_needed()
    box, at = axial.bounding_box(), mine.voxel
    page.mouse.click(box['x'] + .5*box['width'], box['y'] + .5*box['height'])
    until(page, lambda: told() != at and told()[2] == at[2])
    page.mouse.wheel(0, 100)
    until(page, lambda: told()[2] == at[2] + 1)
    mine.go(told())
    until(page, check)
    view.press('S-coronal', 'ArrowRight', 2)
    mine.go(np.add(mine.voxel, [0, 2, 0]))
    until(page, check)
    page.screenshot(path=str(SHOTS/'attribution_volume.png'))
    measure(view, 'S-axial', 'O-viewer', 'next slice of a map of 80 x 70 x 20', ['ArrowRight', 'ArrowLeft']*8)
    assert not page.errors, page.errors
    page.close()


# --- lesions

LESIONS = """
import numpy as np, torch
from misas.data.phantom import disc
from misas.data.sample import Sample
from misas.instances.find import find_instances
from misas.models.adapt import as_model
from misas.widgets.instances import InstanceExplorer
class Spots(torch.nn.Module):
    "What is brighter than its surroundings; a quarter of the weight on the second sequence."
    blur = torch.nn.AvgPool3d((13, 13, 7), 1, (6, 6, 3), count_include_pad=False)
    def forward(self, x):
        x = x[:, :1] - .25*x[:, 1:]
        z = torch.nn.functional.softplus(x - self.blur(x), 20)**2 - .25
        return torch.cat([0*z, 20*z], 1)
balls = [disc((60, 70, 24), radius=r, centre=at, object=grey, background=.2, spacing=(1., 1., 2.))
         for r, at, grey in ((6, (-14, -18, -6), .9), (5, (12, 16, 8), .5), (3, (16, -12, 4), .8))]
image, truth = np.maximum.reduce([b.image[0] for b in balls]), np.maximum.reduce([b.labels for b in balls])
affine = np.diag([-1., -1, 2, 1])
affine[:3, 3] = 30, 35, -24
head = Sample(np.stack([image, 1 - image]), truth, affine=affine, classes=('background', 'lesion'), name='head')
net = as_model(Spots(), activation='softmax', classes=head.classes, name='spots')
explorer = InstanceExplorer(find_instances(net.label(head)[0], head), net, n=3, radii_mm=range(0, 16, 5))
"""


def same_map(page, found, cls='O-viewer', n=0):
    "Has the viewer this map?"
    seen = page.evaluate(VIEWED, [cls, n])['map']
    numbers = coded(found)[0].ravel().astype(int)
    return seen is not None and len(seen) == len(numbers) and np.abs(np.subtract(seen, numbers)).max() <= 2


def test_lesions(lab):
    "The list, its order, groups that are hidden, the map of one lesion and its context."
    page = opened(lab, None, LESIONS + 'explorer')
    view, here = View(page), {}
    exec(LESIONS, here)
    mine = here['explorer']
    missed = mine.found.of('FN')[0].id
    told = lambda: view['N-lesion'].inner_text()
    at = lambda cls='O-viewer': tuple(page.evaluate(VIEWED, [cls, 0])['state']['voxel'])

    lines = lambda: [text.replace('\xa0', ' ') for text in view['L-lesions'].locator('option').all_inner_texts()]
    select = lambda id: view['L-lesions'].locator('select').select_option(index=mine.list.ids.index(id))
    assert lines() == [text for text, _ in mine.list.list.options]
    no_bars(page)
    select(mine.list.ids[1])
    mine.choose(mine.list.ids[1])
    until(page, lambda: mine.look.words['size'] in told())
    until(page, lambda: at() == mine.voxel and at('O-close') == mine.look.close_up.voxel)
    view['D-order'].locator('select').select_option('size, smallest first')
    mine.list.order.value = 'size, smallest first'
    until(page, lambda: lines() == [text for text, _ in mine.list.list.options])
    select(missed)
    until(page, lambda: 'missed (FN)' in told())
    select('P1')
    until(page, lambda: 'found (TP)' in told())
    view['B-ask'].click()
    mine.choose('P1')
    mine.ask_for(['P1'])
    until(page, lambda: mine.look.words['map, channel 1'] in told(), 60)
    until(page, lambda: same_map(page, mine.look._maps['P1'][0][0], 'O-close'))
    view['D-channel'].locator('select').select_option('channel 1')
    until(page, lambda: same_map(page, mine.look._maps['P1'][0][1], 'O-close'))  # its own map
    view['B-context'].click()
    mine.ask_context()
    until(page, lambda: mine.look.words['needed context'] in told(), 60)
    page.screenshot(path=str(SHOTS/'lesions.png'))
    page.get_by_label('FN', exact=True).uncheck()
    until(page, lambda: page.evaluate(VIEWED, ['O-viewer', 0])['state']['hidden'] == [4])
    assert not page.errors, page.errors
    page.close()


# --- atoms

ATOMS = """
import numpy as np, torch
from misas.data.phantom import brain
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.sparse.atoms import atoms
from misas.sparse.contributions import contributions
from misas.networks.mlcsc import MLCSC
from misas.widgets.explore import explore
names = 'FLAIR', 'T1', 'T2'
def net_of(scan, ndim):
    "Atoms of random shape, with weights that are not 0."
    net = MLCSC(3, len(scan.classes), (8, 20), kernels=3, strides=(1, 2), ndim=ndim, own=1, classes=scan.classes, sequences=names)
    net.prepare(torch.tensor(scan.image)[None])
    with torch.no_grad():
        for k, weight in enumerate(net.head): weight.normal_(generator=torch.Generator().manual_seed(k))
    return as_model(net, name='atoms')
scan = brain(1, sequences=names, slice=20, labels='tissues')
model = net_of(scan, 2)
flat, alone = explore(contributions(model, scan, Target('CSF', 'labels'), against='WM')), explore(atoms(model))
"""

DEEP_ATOMS = ATOMS.replace("scan = brain(1, sequences=names, slice=20, labels='tissues')", """
scan = brain(1, sequences=names, labels='tissues')
box = tuple(slice(n//2 - 12, n//2 + 12) for n in scan.shape)
scan = type(scan)(scan.image[(slice(None), *box)], scan.labels[box], affine=scan.affine, classes=scan.classes, name='middle')
""").replace('net_of(scan, 2)', 'net_of(scan, 3)')


def test_atoms(lab):
    "The list, its order and its keys; the map of an atom, the atom itself and the sequences; the gallery of a network."
    page = opened(lab, None, ATOMS + 'display(flat, alone)')
    view, gallery, here = View(page), View(page, 1), {}
    exec(ATOMS, here)
    mine, all_atoms = here['flat'], here['alone']
    from misas.widgets.sparse import CELL
    lines = lambda v: [text.replace('\xa0', ' ') for text in v['L-atoms'].locator('option').all_inner_texts()]
    as_listed = lambda panel: [text for text, _ in panel.list.list.options]
    told = lambda v: v['N-atom'].inner_text()
    atom_of = lambda panel: next(iter(panel.pictures.values()))

    until(page, lambda: lines(view) == as_listed(mine) and lines(gallery) == as_listed(all_atoms))
    first = atom_of(mine)
    view.press('S-atom', 'ArrowRight', 3)                                       # with the keyboard
    mine.choose(*mine.list.ids[3])
    until(page, lambda: mine.words['contribution'] in told(view))
    until(page, lambda: same_map(page, mine.middle.map))
    until(page, lambda: nearest(view.settled('N-atom'), [atom_of(mine), first])[0] == 0)
    assert view['N-atom'].locator('img').count() == 2                         # the atom, and the sequences
    before = voxels(page)
    view['D-over'].locator('select').select_option('over T1')
    until(page, lambda: (voxels(page) != before).any() and same_map(page, mine.middle.map))
    canvas = page.locator('.O-viewer canvas').first
    canvas.scroll_into_view_if_needed()
    box, at = canvas.bounding_box(), mine.middle.voxel
    page.mouse.click(box['x'] + .5*box['width'], box['y'] + .45*box['height'])
    voxel = lambda: tuple(map(int, re.findall(r'voxel\s+(\d+), (\d+)', view['N-voxel'].inner_text())[0]))
    until(page, lambda: voxel() != at)
    mine.middle.move(voxel())
    until(page, lambda: mine.middle.words['contribution here'] in view['N-voxel'].inner_text())
    no_bars(page)
    page.screenshot(path=str(SHOTS/'contributions.png'))
    view['D-layer'].locator('select').select_option('layer 0')
    view['D-order'].locator('select').select_option('energy in T2')
    mine.list.layer.value, mine.list.order.value = 0, 2
    until(page, lambda: lines(view) == as_listed(mine) and mine.words['atom'] in told(view))

    gallery['D-order'].locator('select').select_option('energy in T2')
    all_atoms.list.order.value = 2
    until(page, lambda: lines(gallery) == as_listed(all_atoms))
    before, first, chosen = all_atoms.middle.rgb, atom_of(all_atoms), all_atoms.list.ids[4]
    view.click('O-gallery', (all_atoms.middle.names.shape[1] + 4.5*CELL)/all_atoms.middle.picture.width, .5)
    all_atoms.choose(*chosen)
    until(page, lambda: all_atoms.words['atom'] in told(gallery))
    until(page, lambda: nearest(gallery.settled('N-atom'), [atom_of(all_atoms), first])[0] == 0)
    assert nearest(view.settled('O-gallery'), [all_atoms.middle.rgb, before])[0] == 0
    gallery['D-layer'].locator('select').select_option('layer 1')
    all_atoms.list.layer.value = 1
    until(page, lambda: lines(gallery) == as_listed(all_atoms) and all_atoms.words['atom'] in told(gallery))
    assert gallery['L-atoms'].locator('option').count() == 20
    gallery['N-atom'].scroll_into_view_if_needed()
    page.screenshot(path=str(SHOTS/'atoms.png'))
    assert not page.errors, page.errors
    page.close()


def test_atoms_of_a_volume(lab):
    "Three pictures in the orientation of the patient; a slider moves them."
    page = opened(lab, None, DEEP_ATOMS + 'flat')
    view, here = View(page), {}
    exec(DEEP_ATOMS, here)
    mine = here['flat']
    at = lambda: tuple(page.evaluate(VIEWED, ['O-viewer', 0])['state']['voxel'])
    until(page, lambda: at() == mine.middle.voxel and same_map(page, mine.middle.map))
    view['L-atoms'].locator('select').select_option(index=2)
    mine.choose(*mine.list.ids[2])
    until(page, lambda: mine.words['contribution'] in view['N-atom'].inner_text())
    until(page, lambda: at() == mine.middle.voxel and same_map(page, mine.middle.map))
    view.press('S-axial', 'ArrowRight', 2)
    mine.middle.move(np.add(mine.middle.voxel, [0, 0, 2]))
    until(page, lambda: at() == mine.middle.voxel and mine.middle.words['contribution here'] in view['N-voxel'].inner_text())
    page.screenshot(path=str(SHOTS/'atoms_volume.png'))
    no_bars(page)
    assert not page.errors, page.errors
    page.close()


# --- ways through codes

WAY = """
import numpy as np
from misas.data.phantom import ThresholdModel, disc
from misas.data.sample import Sample
from misas.models.adapt import as_model
from misas.structure.autoencoder import autoencoder
from misas.structure.latent import traverse
from misas.widgets.latent import LatentExplorer
pattern = disc((32, 32), radius=7, centre=(-5, 0)).labels.astype(np.float32)
phantoms = [Sample(grey*pattern[None], spacing=1.5) for grey in np.linspace(2, 4, 20)]
finder = as_model(ThresholdModel(1.7), classes=('background', 'disc'), activation='softmax')
LatentExplorer(traverse(autoencoder(phantoms, kind='linear', latent=1, size=32), component=0, values=np.linspace(-3, 3, 7), model=finder, like=phantoms[0]))
"""


def test_way(lab):
    "Picture, prediction and the curve's marker follow the slider, also when the kernel is gone."
    page = opened(lab, None, WAY)
    view = View(page)
    page.locator('.O-picture canvas').first.wait_for(timeout=30_000)
    no_bars(page)
    seen = lambda: (page.evaluate(SHOWN, ['O-picture', 0])['grey'], page.evaluate(MARKED, ['O-curve', 0])['x'])
    picture, mark = seen()
    view.press('S-value', 'ArrowRight', 1)
    until(page, lambda: seen()[0] != picture and seen()[1] > mark)
    page.screenshot(path=str(SHOTS/'way.png'))
    shut_down(page)
    picture, mark = seen()
    view.press('S-value', 'ArrowLeft', 3)
    until(page, lambda: seen()[0] != picture and seen()[1] < mark)
    assert not page.errors, page.errors
    page.close()
