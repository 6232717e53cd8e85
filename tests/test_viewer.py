"The viewer in a real browser: exact pixels, orientations, hands on it, and how long a picture takes."
import itertools
import re
import statistics

import numpy as np
import pytest
from browser import chromium
from viewer_page import page_with, page_with_pair

from misas.data.phantom import short_axis_stack
from misas.data.sample import Sample
from misas.data.slices import slice_array, slice_letters
from misas.transforms.voxels import Resize
from misas.view import draw
from misas.widgets.base import Panel, chart_style, with_classes
from misas.widgets.linked import in_patient
from misas.widgets.look import as_frame, channel_windows
from misas.widgets.stack import BeforeAfter
from misas.widgets.viewer import Pool, class_look, packed


@pytest.fixture(scope='module')
def browser():
    with chromium() as running: yield running


def open_page(browser, tmp_path, samples, predictions, width=1280, scale=1, classes=('a', 'b', 'c'), other=None):
    "A page with a viewer of some samples and predictions."
    pool, look = Pool(), dict(class_look(classes), name='heart')
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
    place = page.evaluate('v => viewer.placed(v)', voxel)
    assert place + ' mm' == in_patient(affine, voxel)
    told = dict(zip(place.split()[::2], map(float, place.split()[1::2])))
    assert [told.get(right, -told.get(left, 0)) for right, left in ('RL', 'AP', 'SI')] == (affine @ [*voxel, 1])[:3].tolist()
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


@pytest.mark.parametrize('overlapping', [False, True])
def test_patterns_beyond_20_classes(browser, tmp_path, overlapping):
    "What tells classes of one colour apart, as in figures: patterns lie on the voxels of these classes and nowhere else."
    classes = [f'c{k}' for k in range(1, 31 if overlapping else 71)]
    rng = np.random.default_rng(0)
    s = Sample(rng.normal(size=(1, 20, 20)))
    answer = rng.integers(0, len(classes) + 1, s.shape)
    found = np.stack([answer == k for k in range(1, len(classes) + 1)]) if overlapping else answer
    page = open_page(browser, tmp_path, [s], [found], classes=classes)
    hidden = [25, 26]
    page.evaluate('hidden => viewer.set({hidden})', hidden)
    page.screenshot(path=str(tmp_path/'patterns.png'))
    masks = page.evaluate("""[...patterned(viewer.frame, viewer.planes[0].cut, viewer.state, viewer.look)].map(([k, mask]) => [k, Array.from(mask)])""")
    wanted = {k for k in range(1, len(classes) + 1) if draw.hatch(k)} - set(hidden)
    assert {k for k, mask in masks if any(mask)} == wanted & set(np.unique(answer))
    for k, mask in masks: assert np.array_equal(np.reshape(mask, s.shape), answer == k)
    on = page.evaluate("""() => { const p = viewer.planes[0], f = p.fit(p.cut), {width, height} = p.canvas;
        const paint = () => { p.shown = null; viewer.draw(); return new Uint32Array(p.painted.getContext('2d').getImageData(0, 0, width, height).data.buffer) };
        const one = paint();
        viewer.look.hatches = [];
        const two = paint(), middle = (at, start, size) => Math.floor(start + at*size);
        const differ = (i, j) => {                                       // in the middle of a voxel
          for (let y = middle(j + .2, f.top, f.y); y < middle(j + .8, f.top, f.y); y++)
            for (let x = middle(i + .2, f.left, f.x); x < middle(i + .8, f.left, f.x); x++) if (one[y*width + x] !== two[y*width + x]) return true;
          return false };
        return [...Array(20).keys()].map(j => [...Array(20).keys()].map(i => differ(i, j))) }""")
    assert np.array_equal(on, np.isin(answer, list(wanted)))
    assert not page.errors
    page.close()


def test_lines_beyond_20_classes(browser, tmp_path):
    "Outlines are dashed as in figures."
    s, classes = Sample(np.zeros((1, 20, 80))), [f'c{k}' for k in range(1, 71)]
    answer = np.zeros(s.shape, int)
    for n, k in enumerate((1, 21, 41, 61)): answer[5:15, 20*n + 5:20*n + 15] = k
    page = open_page(browser, tmp_path, [s], [answer], classes=classes)
    gaps = page.evaluate("""() => { viewer.set({mode: 'outline'});
        const p = viewer.planes[0], f = p.fit(p.cut), blue = viewer.look.palette[0];
        return [0, 1, 2, 3].map(n => {                                   // along the upper side of each square
          const [left, right] = [20*n + 6, 20*n + 14].map(i => Math.round(f.left + i*f.x)), top = Math.round(f.top + 5*f.y);
          const row = p.painted.getContext('2d').getImageData(left, top, right - left, 1).data;
          const ink = [...Array(right - left).keys()].map(x => row[4*x + 2] > .4*blue[2]);
          return ink.filter((on, x) => x && on && !ink[x - 1]).length }) }""")
    assert gaps[0] == 0 and len(set(gaps)) == len(draw.DASHES) and not page.errors
    page.close()


def test_a_truth_alone_tells_its_classes_apart(browser, tmp_path):
    "Beside a prediction it is white."
    truth = np.zeros((20, 40), int)
    truth[5:15, 5:15], truth[5:15, 25:35] = 1, 2
    def sides(answer):
        page = open_page(browser, tmp_path, [Sample(np.zeros((1, 20, 40)), truth)], [answer], classes=['a', 'b'])
        seen = page.evaluate("""() => { viewer.set({mode: 'outline', prediction: false});
            const p = viewer.planes[0], f = p.fit(p.cut), pen = p.painted.getContext('2d');
            const seen = [10, 30].map(i => [...pen.getImageData(Math.round(f.left + i*f.x), Math.round(f.top + 5*f.y), 1, 1).data]);
            return [seen.map(c => c.slice(0, 3)), viewer.look.palette.slice(0, 2)] }""")
        assert not page.errors
        page.close()
        return seen

    seen, palette = (np.array(rgb)/np.linalg.norm(rgb, axis=1, keepdims=True) for rgb in sides(None))
    assert np.allclose(seen, palette, atol=.02)  # as a thin line is blended with the black around it
    assert np.min(sides(truth)[0]) > 150


def pair_of(one, other, classes=('a', 'b', 'c')):
    "Two frames next to each other."
    windows = channel_windows(one.image)
    pair = with_classes(BeforeAfter, len(classes))(as_frame(one, one.labels, windows), classes, 'heart')
    pair.show(pair.before, None if other is None else as_frame(other, other.labels, windows))
    pair.say('before: unchanged', 'after: changed')
    return pair


HALF = """k => { const v = halves[k], cut = v.planes[0].cut; return {data: Array.from(pixels(v.frame, cut, v.state, v.look)),
    shape: [cut.height, cut.width, 4], voxel: v.state.voxel, zoom: v.planes[0].zoom, pan: v.planes[0].pan, told: v.told.innerText} }"""


def test_before_and_after(browser, tmp_path):
    "Voxels of other sizes: both show the same place, voxel for voxel what is rendered directly, and the kernel has ended."
    rng = np.random.default_rng(0)
    s = Sample(rng.normal(size=(1, 20, 24, 8)), rng.integers(0, 4, (20, 24, 8)), affine=np.diag([-1., -1, 2, 1]))
    larger = Resize()(s, 2)
    page = page_with_pair(browser, tmp_path, pair_of(s, larger))
    half = lambda k: page.evaluate(HALF, k)

    def check():
        for k, one in enumerate((s, larger)):
            found, index = half(k), half(k)['voxel'][2]
            cut = [slice_array(a, index, 2, one.affine) for a in (as_frame(one, None, channel_windows(s.image)).grey[0], one.labels)]
            right = draw.overlay(Sample(cut[0][None].astype(np.float32)), cut[1], window=(0, 255), scale=1)
            assert np.array_equal(np.array(found['data'], np.uint8).reshape(found['shape'])[..., :3], right)
        assert np.array_equal(np.floor_divide(half(1)['voxel'], np.divide(larger.shape, s.shape)), half(0)['voxel'])

    check()
    after = page.locator('canvas').nth(1)
    after.hover()
    begin = half(1)['voxel'][2]
    for step in range(1, 4):                                             # every slice of the larger one is reached
        page.mouse.wheel(0, 100)
        page.wait_for_function('z => halves[1].state.voxel[2] === z', arg=begin + step)
        check()
    page.locator('canvas').nth(0).hover()
    page.mouse.wheel(0, 100)
    check()
    told = [half(k)['told'] for k in (0, 1)]
    assert all('voxel' in text for text in told) and page.evaluate('halves[1].mirrored && !halves[0].mirrored')
    after.focus()
    page.keyboard.press('+')
    assert half(0)['zoom'] == half(1)['zoom'] > 1
    page.mouse.move(5, 5)
    assert not page.evaluate('halves[1].mirrored')
    assert not page.errors
    page.close()


@pytest.mark.parametrize('width', [1280, 390])
def test_before_and_after_fit(browser, tmp_path, width):
    "No scrollbar; nothing below moves when there is no second picture; one PNG holds both."
    s = short_axis_stack()
    page = page_with_pair(browser, tmp_path, pair_of(s, s, s.classes[1:]), width)
    assert page.evaluate('document.documentElement.scrollWidth == document.documentElement.clientWidth')
    assert page.evaluate('[...document.querySelectorAll(".mp, .mp *")].every(e => e.scrollWidth <= e.clientWidth + 1 || !e.clientWidth)')
    boxes = [stage.bounding_box() for stage in page.locator('.mv-stage').all()]
    assert (boxes[0]['y'] == boxes[1]['y']) == (width > 500) and boxes[0]['height'] == boxes[1]['height']
    wide = page.evaluate('(async () => (await createImageBitmap(await halves[1].picture())).width)()')
    assert wide == page.evaluate('halves[0].planes[0].canvas.width + 4 + halves[1].planes[0].canvas.width')
    below = page.locator('#below').bounding_box()
    page.locator('canvas').first.hover()
    assert page.locator('#below').bounding_box() == below or width < 500  # where lines of words have room
    page.mouse.move(1, 1)
    page.evaluate("model.set('changed', {})")
    assert not page.locator('.mv-stage').nth(1).is_visible() and page.locator('#below').bounding_box() == below
    page.locator('canvas').first.hover()
    page.mouse.wheel(0, 100)
    page.evaluate("model.set('direction', 3)")
    assert page.locator('canvas').count() >= 3 and not page.errors
    page.close()


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


NOTEBOOK = """<body data-jp-theme-light="%s" style="background: %s; color: %s">%s<img class="misas-chart"><img class="other">%s</body>"""


@pytest.mark.parametrize('light, paper, ink', [('true', '#ffffff', '#212121'), ('false', '#111111', '#ffffff')])
def test_errors_and_charts_in_both_themes(browser, light, paper, ink):
    "An error has a contrast of 4.5 on either paper; that of charts turns, images stay."
    panel, page = Panel(), browser.new_page()
    panel.fail(ValueError('out of range'))
    page.set_content(NOTEBOOK % (light, paper, ink, chart_style(), panel.message.value))
    told = page.locator('[role=alert]').evaluate("o => getComputedStyle(o).color")
    numbers = np.array([float(x) for x in re.findall('[0-9.]+', told)[:3]])*(1 if 'srgb' in told else 1/255)
    shades = [numbers, np.array([int(paper[i:i + 2], 16) for i in (1, 3, 5)])/255]
    bright = [np.where(c <= .04045, c/12.92, ((c + .055)/1.055)**2.4) @ [.2126, .7152, .0722] for c in shades]
    assert (max(bright) + .05)/(min(bright) + .05) > 4.5 and numbers[0] > 1.5*numbers[1]  # and it is red
    turned = [page.locator(f'img.{name}').evaluate("o => getComputedStyle(o).filter !== 'none'") for name in ('misas-chart', 'other')]
    assert turned == [light == 'false', False]
    panel.close()
    page.close()
