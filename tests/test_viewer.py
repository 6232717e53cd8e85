"The viewer in a real browser: exact pixels, orientations, hands on it, and how long a picture takes."
import itertools
import statistics

import numpy as np
import pytest
from browser import chromium
from viewer_page import page_with

from misas.data.phantom import short_axis_stack
from misas.data.sample import Sample
from misas.data.slices import slice_array, slice_letters
from misas.view import draw
from misas.widgets.look import as_frame, channel_windows
from misas.widgets.viewer import Pool, packed


@pytest.fixture(scope='module')
def browser():
    with chromium() as running: yield running


def open_page(browser, tmp_path, samples, predictions, width=1280, scale=1, classes=('a', 'b', 'c'), other=None):
    "A page with a viewer of some samples and predictions."
    pool, look = Pool(), dict(classes=list(classes), palette=[draw.rgb(k).tolist() for k in range(1, len(classes) + 1)], name='heart')
    windows = channel_windows(samples[0].image)
    frames = [packed(as_frame(s, p, windows), windows, pool, other=other) for s, p in zip(samples, predictions)]
    return page_with(browser, tmp_path, frames, pool, look, width, scale)


def pixels(page, plane, frame=0):
    "What the viewer shows of one cut, a pixel a voxel."
    found = page.evaluate('''([plane, k]) => { const cut = new Cut(frames[k], frames[k].planes[plane], viewer.state.voxel);
        return {data: Array.from(pixels(frames[k], cut, viewer.state, viewer.look)), shape: [cut.height, cut.width, 4]} }''', [plane, frame])
    return np.array(found['data'], np.uint8).reshape(found['shape'])[..., :3]


AXES = [(p, s) for p in itertools.permutations(range(3)) for s in itertools.product((1, -1), repeat=3)]
TURNED = [(p, s) for p, s in AXES if np.isclose(np.linalg.det(np.eye(3)[list(p)]*s), 1)]


@pytest.mark.parametrize('k', range(24))
def test_every_orientation(browser, tmp_path, k):
    "24 ways to store a volume: each picture is what is rendered directly, voxel for voxel, with its letters."
    order, signs = TURNED[k]
    rng, affine = np.random.default_rng(k), np.eye(4)
    affine[:3, :3] = np.eye(3)[list(order)]*signs*[1, 2, 3]
    labels = rng.integers(0, 4, (5, 6, 7))
    s = Sample(rng.normal(size=(1, 5, 6, 7)), labels, affine=affine)
    answer = rng.integers(0, 4, (5, 6, 7))
    page = open_page(browser, tmp_path, [s], [answer])
    grey = as_frame(s, answer).grey
    voxel = [int(rng.integers(n)) for n in s.shape]
    page.evaluate('v => viewer.set({voxel: v})', voxel)
    for n, plane in enumerate(page.evaluate('frames[0].planes')):
        axis, index = plane['across'], voxel[plane['across']]
        assert plane['letters'] == list(slice_letters(affine, axis))
        flat = [slice_array(a, index, axis, affine) for a in (grey[0], answer)]
        right = draw.overlay(Sample(flat[0][None].astype(np.float32)), flat[1], window=(0, 255), scale=1)
        assert np.array_equal(pixels(page, n), right)
    assert not page.errors
    page.close()


def test_windows_classes_and_overlap(browser, tmp_path):
    "A window, a hidden class, and classes that overlap give what Python gives."
    rng = np.random.default_rng(0)
    s = Sample(rng.normal(size=(1, 30, 40)))
    masks = rng.random((3, 30, 40)) > .6
    page = open_page(browser, tmp_path, [s], [masks])
    grey = Sample(as_frame(s).grey.astype(np.float32))
    for window in ((0, 255), (40, 200), (100, 110)):
        page.evaluate('w => viewer.set({window: w, hidden: []})', window)
        assert np.array_equal(pixels(page, 0), draw.overlay(grey, masks, window=window, scale=1))
    page.evaluate('viewer.set({hidden: [2], window: [0, 255]})')
    assert np.array_equal(pixels(page, 0), draw.overlay(grey, masks, window=(0, 255), classes=[1, 3], scale=1))
    page.close()


@pytest.mark.parametrize('kind', ['map of 300 classes', '20 masks'])
def test_many_classes(browser, tmp_path, kind):
    "Numbers of classes that no byte holds."
    rng = np.random.default_rng(0)
    s = Sample(rng.normal(size=(1, 30, 40)))
    answer = rng.integers(0, 301, s.shape) if kind.startswith('map') else rng.random((20, 30, 40)) > .9
    page = open_page(browser, tmp_path, [s], [answer], classes=[f'c{k}' for k in range(300)])
    grey = Sample(as_frame(s).grey.astype(np.float32))
    assert np.array_equal(pixels(page, 0), draw.overlay(grey, answer, window=(0, 255), scale=1))
    assert not page.errors
    page.close()


def test_more_masks_than_a_page_tells_apart():
    s = Sample(np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match='at most 32 overlapping classes apart, got 40'):
        packed(as_frame(s, np.zeros((40, 8, 8), bool)), channel_windows(s.image), Pool())


@pytest.mark.parametrize('stored', [1, -1])
def test_wipe(browser, tmp_path, stored):
    "One prediction left of the line, the other right of it, however the picture is stored; the line can be dragged."
    rng, affine = np.random.default_rng(0), np.diag([stored, 1., 1, 1])
    s = Sample(rng.normal(size=(1, 40, 30, 6)), affine=affine)
    one, two = rng.integers(0, 3, (2, 40, 30, 6))
    page = open_page(browser, tmp_path, [s], [one], classes=['a', 'b'], other=two)
    page.evaluate("viewer.look.sides = ['old', 'new']; viewer.set({wipe: .25, voxel: [5, 5, 3]})")
    cut = [slice_array(a, 3, 2, affine) for a in (as_frame(s).grey[0], one, two)]
    joined = np.where(np.arange(40) < 10, cut[1], cut[2])
    right = draw.overlay(Sample(cut[0][None].astype(np.float32)), joined, window=(0, 255), scale=1)
    plane = next(k for k, p in enumerate(page.evaluate('frames[0].planes')) if p['across'] == 2)
    assert np.array_equal(pixels(page, plane), right)
    box = page.locator('canvas').nth(plane).bounding_box()
    line = box['x'] + page.evaluate('([k]) => { const p = viewer.planes[k], f = p.fit(p.cut); return (f.left + 10*f.x)/p.ratio }', [plane])
    page.mouse.move(line, box['y'] + 40)
    page.mouse.down()
    page.mouse.move(line + box['width']*.3, box['y'] + 40)
    page.mouse.up()
    assert page.evaluate('viewer.state.wipe') > .4 and page.evaluate('viewer.state.voxel') == [5, 5, 3]
    told = page.locator('.mv-told').inner_text()
    assert 'old ' in told and 'new ' in told
    for mode in ('outline', 'differ'):
        page.evaluate('m => viewer.set({mode: m})', mode)
    assert not page.errors
    page.close()


def test_where_two_differ(browser, tmp_path):
    "Lines where only one of two predictions has a class, none where both have it."
    s = Sample(np.zeros((1, 60, 60)))
    one, two = np.zeros((2, 60, 60), int)
    one[10:50, 10:30] = two[10:50, 20:40] = 1
    page = open_page(browser, tmp_path, [s], [one], classes=['a'], other=two)
    page.evaluate("viewer.set({mode: 'differ'})")
    masks = page.evaluate('viewer.planes[0].differences(viewer.planes[0].cut, 1)')
    assert [np.reshape(m, (60, 60))[30].nonzero()[0].tolist() for m in masks] == [[*range(10, 20)], [*range(30, 40)]]
    page.close()


@pytest.mark.parametrize('width', [1920, 1280, 390])
def test_it_fits(browser, tmp_path, width):
    "No scrollbar, the full width, and nothing below moves when a picture turns."
    s = short_axis_stack()
    flat = s.replace(image=np.swapaxes(s.image, 1, 2)[:, :64], labels=np.swapaxes(s.labels, 0, 1)[:64], affine=s.affine)
    page = open_page(browser, tmp_path, [s, flat], [s.labels, flat.labels], width)
    below = page.locator('#below').bounding_box()
    assert page.evaluate('document.documentElement.scrollWidth == document.documentElement.clientWidth')
    assert page.evaluate('[...document.querySelectorAll(".mv, .mv *")].every(e => e.scrollWidth <= e.clientWidth + 1 || !e.clientWidth)')
    stage, planes = page.locator('.mv-stage').bounding_box(), [o.bounding_box() for o in page.locator('.mv-plane').all()]
    assert all(o['x'] >= stage['x'] - 1 and o['x'] + o['width'] <= stage['x'] + stage['width'] + 1 for o in planes)
    page.evaluate('viewer.show(frames[1])')
    assert page.locator('#below').bounding_box() == below and not page.errors
    page.close()


def test_hands(browser, tmp_path):
    "Wheel, keys, crosshair, window, zoom, and what is told under the pointer."
    s = short_axis_stack()
    page = open_page(browser, tmp_path, [s], [s.labels], classes=s.classes[1:])
    state = lambda: page.evaluate('viewer.state')
    canvas = page.locator('canvas').first
    box, before = canvas.bounding_box(), state()['voxel']
    x, y = box['x'] + box['width']*.25, box['y'] + box['height']*.5
    page.mouse.move(x, y)
    assert 'mm' in page.locator('.mv-told').inner_text() and 'truth' in page.locator('.mv-told').inner_text()
    page.mouse.wheel(0, 100)
    page.wait_for_function('v => viewer.state.voxel[2] == v', arg=before[2] + 1)
    page.mouse.down()
    page.mouse.up()
    assert abs(state()['voxel'][0] - round(.25*128)) <= 1  # columns run along the first axis here
    canvas.focus()
    page.keyboard.press('ArrowDown')
    assert state()['voxel'][2] == before[2]
    page.mouse.down(button='right')
    page.mouse.move(x + 40, y + 10)
    page.mouse.up(button='right')
    low, high = state()['window']
    assert (low, high) != (0, 255)
    page.mouse.dblclick(x, y)
    assert state()['window'] == [0, 255]
    page.keyboard.press('+')
    assert page.evaluate('viewer.planes[0].zoom') > 1
    assert not page.errors
    page.close()


def test_time_to_painted_picture(browser, tmp_path, capsys):
    "Slices of 197 x 233 x 189, and frames of 256 x 256: medians of 20, shown and not asserted."
    shape = 197, 233, 189
    z = np.linalg.norm(np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij')), axis=0)
    brain = Sample(z[None].astype(np.float32), np.digitize(-z, [-.9, -.6, -.3]), affine=np.diag([-1., -1, 1, 1]))
    page = open_page(browser, tmp_path, [brain], [np.roll(brain.labels, 3, 0)])
    move = '''async n => { const out = []; for (let i = 0; i < n; i++) { const t = performance.now();
        viewer.set({voxel: [90 + i % 9, 110 + i % 7, 90 + i % 5]}); await new Promise(requestAnimationFrame); out.push(performance.now() - t) } return out }'''
    took = statistics.median(page.evaluate(move, 20))
    with capsys.disabled(): print(f'\n  three slices of 197 x 233 x 189, painted: {took:.1f} ms (of which 0 to 16.7 wait for the screen)')
    page.screenshot(path=str(tmp_path/'brain.png'))
    page.close()
    assert took < 1000
