"Maps over images in the viewer: colours, legend and words in a real page, and what is sent to it."
import numpy as np
import pytest
import torch
from browser import chromium
from viewer_page import page_with

from misas.attribution.attribute import Attribution
from misas.data.phantom import disc, short_axis_stack
from misas.data.sample import Sample
from misas.data.slices import cuts
from misas.inside.target import Target
from misas.instances.find import find_instances
from misas.instances.results import GROUPS
from misas.models.adapt import as_model
from misas.view.draw import grey_window
from misas.view.maps import map_limit, overlay_map, palette
from misas.widgets import attribution
from misas.widgets.attribution import LIMITS, AttributionExplorer, MapFrames, Maps
from misas.widgets.base import open_widgets
from misas.widgets.instances import CLASS_OF, InstanceExplorer, surroundings
from misas.widgets.linked import TOP, coded, with_map
from misas.widgets.look import as_frame, channel_windows
from misas.widgets.viewer import Pool, packed

SIGNS = 'both', 'positive', 'negative'


@pytest.fixture(scope='module')
def browser():
    with chromium() as running: yield running


def open_page(browser, tmp_path, frames, pool, width=900):
    "A page with a viewer of frames with maps."
    look = dict(name='heart', pointed=True, mapColours=(255*palette(opacity=1.).astype(float)).round(2).tolist())
    return page_with(browser, tmp_path, frames, pool, look, width, more=['viewer_map.js'])


def framed(sample, map, percentiles=(99.5,), unit='logit', region=None):
    "A frame with a map, and its pool."
    windows, pool = channel_windows(sample.image), Pool()
    frame = packed(as_frame(sample, None, windows), windows, pool)
    return with_map(frame, pool, map, [map_limit(map, q) for q in percentiles], unit, region), pool


def pixels(page, plane=0):
    "What the viewer shows of one cut, a pixel a voxel."
    found = page.evaluate('''plane => { const cut = new Cut(viewer.frame, viewer.frame.planes[plane], viewer.state.voxel);
        return {data: Array.from(pixels(viewer.frame, cut, viewer.state, viewer.look)), shape: [cut.height, cut.width, 4]} }''', plane)
    return np.array(found['data'], np.uint8).reshape(found['shape'])[..., :3]


def picture(seed=0, shape=(40, 50)):
    rng = np.random.default_rng(seed)
    return Sample(rng.normal(size=(1, *shape)), spacing=1., name='noise'), rng.normal(size=shape).astype(np.float32)


def apart(seen, wanted):
    "Share of the pixels that differ by more than one grey value: what lies at a threshold may fall to its other side."
    return (np.abs(seen.astype(int) - wanted).max(-1) > 1).mean()


def test_colours_are_those_of_the_figures(browser, tmp_path):
    "Opacity, threshold, sign and limit, applied in the page, give what overlay_map gives."
    sample, map = picture()
    page = open_page(browser, tmp_path, *_one(framed(sample, map, (90., 99.5, 100.))))
    for strength, threshold, sign, limit in ((.85, 0., 0, 1), (1., .3, 0, 1), (.5, .5, 1, 0), (.7, .1, 2, 2), (0., 0., 0, 1)):
        state = dict(strength=strength, threshold=threshold, sign=sign, limit=limit)
        page.evaluate('s => viewer.set(s)', state)
        look = dict(opacity=strength, threshold=threshold, sign=SIGNS[sign], limit=map_limit(map, (90., 99.5, 100.)[limit]))
        assert apart(pixels(page), overlay_map(sample, map, scale=1, **look)) <= .003, state
    page.evaluate('viewer.set({map: false})')
    assert apart(pixels(page), overlay_map(sample, 0*map, scale=1)) == 0
    assert not page.errors
    page.close()


def _one(frame_and_pool): return [frame_and_pool[0]], frame_and_pool[1]


def test_a_rare_peak_leaves_enough_numbers_below(browser, tmp_path):
    "A voxel a hundred times the limit takes none of the shades from the others."
    sample, map = picture(1)
    map[3, 4] = 100*np.abs(map).max()
    page = open_page(browser, tmp_path, *_one(framed(sample, map)))
    assert apart(pixels(page), overlay_map(sample, map, scale=1)) <= .03
    page.close()


def test_volumes_in_their_orientation(browser, tmp_path):
    "Each of the three cuts is that of the figures; an affine that turns the volume turns its map."
    stack = short_axis_stack((20, 16, 6))
    turned = Sample(stack.image.transpose(0, 3, 1, 2)[:, ::-1].copy(), affine=np.array([[0, 2, 0, 0], [0, 0, 2, 0], [-8, 0, 0, 40], [0, 0, 0, 1.]]))
    map = np.random.default_rng(2).normal(size=turned.shape).astype(np.float32)
    page = open_page(browser, tmp_path, *_one(framed(turned, map)))
    voxel = [2, 7, 5]
    page.evaluate('v => viewer.set({voxel: v})', voxel)
    for plane, (_, axis) in enumerate(cuts(turned.affine)):
        cut = dict(index=voxel[axis], axis=axis, window=grey_window(turned.image))
        seen, wanted = pixels(page, plane), overlay_map(turned, map, scale=1, **cut)
        at = [((np.arange(n) + .5)*m/n).astype(int) for n, m in zip(seen.shape, wanted.shape[:2])]
        assert apart(seen, wanted[np.ix_(*at)]) <= .02
    page.close()


def test_legend_and_words(browser, tmp_path):
    "Numbers, unit and sign of the colours; the value under the pointer; nothing moves when the map is hidden."
    sample, map = picture(3)
    region = np.zeros(sample.shape, bool)
    region[10:20, 10:20] = True
    page = open_page(browser, tmp_path, *_one(framed(sample, map, (99.5, 100.), 'logit per grey value', region)), width=390)
    legend = page.locator('.mv-legend')
    limit = map_limit(map)
    assert legend.inner_text().split('\n')[0].startswith(f'≤ −{limit:.2g}') and 'logit per grey value' in legend.inner_text()
    page.evaluate('viewer.set({limit: 1})')
    assert '≥' not in legend.inner_text() and f'{np.abs(map).max():.2g}' in legend.get_attribute('aria-label')
    assert page.evaluate('document.documentElement.scrollWidth == document.documentElement.clientWidth')
    below = page.locator('#below').bounding_box()
    page.evaluate('viewer.set({map: false})')
    assert page.locator('#below').bounding_box() == below and not legend.is_visible()
    page.evaluate('viewer.tellAt([12, 13])')
    told = page.locator('.mv-told').inner_text().replace('−', '-')
    assert f'map {map[12, 13]:+.3g} logit per grey value, inside the target' in told
    page.evaluate('viewer.tellAt([30, 40])')
    assert 'outside the target' in page.locator('.mv-told').inner_text()
    assert not page.errors
    page.close()


def test_maps_without_a_sign_and_empty_ones(browser, tmp_path):
    "What is nowhere negative begins at 0; a map of zeros shows the image."
    sample, map = picture(4)
    page = open_page(browser, tmp_path, *_one(framed(sample, np.abs(map))))
    assert page.locator('.mv-legend').inner_text().startswith('0')
    assert apart(pixels(page), overlay_map(sample, np.abs(map), scale=1)) <= .003
    page.close()
    page = open_page(browser, tmp_path, *_one(framed(sample, 0*map)))
    assert apart(pixels(page), overlay_map(sample, 0*map, scale=1)) == 0 and not page.errors
    page.close()


def test_a_click_chooses_a_voxel_of_a_picture(browser, tmp_path):
    sample, map = picture(5)
    page = open_page(browser, tmp_path, *_one(framed(sample, map)))
    box = page.locator('.mv-plane').bounding_box()
    page.mouse.click(box['x'] + .25*box['width'], box['y'] + .5*box['height'])
    row, column = page.evaluate('viewer.state.voxel')
    assert abs(row - 20) <= 1 and abs(column - 12) <= 1
    page.close()


def test_coded():
    "16 bits, zero is zero, and the ends are the ends."
    map = np.array([-2., 0, 1e-3, 2])
    numbers, (low, high) = coded(map)
    assert numbers.dtype == np.uint16 and numbers[0] == 0 and numbers[-1] == TOP and (low, high) == (-2, 2)
    assert numbers[1] == TOP//2 and low + numbers[1]/TOP*(high - low) == 0
    assert coded(np.zeros((3, 4)))[1] == (0, 1) and coded(np.array([0., 5]))[1] == (0, 5)


def explained(ndim=2, channels=1, per_channel=True):
    "An attribution with a map of noise."
    shape = (24, 30) if ndim == 2 else (12, 14, 10)
    one = disc(shape, radius=4)
    sample = one.replace(image=np.concatenate([one.image]*channels))
    net = (torch.nn.Conv2d if ndim == 2 else torch.nn.Conv3d)(channels, 2, 1)
    model, rng = as_model(net, activation='softmax', classes=one.classes), np.random.default_rng(0)
    map = rng.normal(size=(channels if per_channel else 1, *shape)).astype(np.float32)
    return Attribution(map, 'saliency', Target(1, sample.labels == 1).freeze(model, sample), sample, model, sample.labels, {}, 0., (0, 0))


@pytest.mark.parametrize('ndim', [2, 3])
def test_what_is_sent(ndim, monkeypatch):
    "Image, target and labels once for all maps; of many maps each when it is asked for."
    one = explained(ndim, 2)
    maps = Maps({'a': one, 'b': explained(ndim, 2, False)})
    assert list(maps.choices) == ['a', 'a, channel 0', 'a, channel 1', 'b']
    frames, pool = MapFrames(maps).sent(0)
    assert len({frame['grey'] for frame in frames}) == len({frame['region'] for frame in frames}) == 1 and len(pool.bytes) < 4*len(frames)
    assert frames[0]['truth'] is not None and frames[0]['mapUnit'] == one.unit
    assert np.allclose(frames[2]['mapLimits'], [map_limit(one.map[1], q) for _, q in LIMITS])
    monkeypatch.setattr(attribution, 'PAGE', 1)
    ready = MapFrames(maps)
    frames, _ = ready.sent(1)
    assert [frame is not None for frame in frames] == [False, True, False, False]
    frame, pool = ready.alone(3)
    assert np.frombuffer(pool.bytes[frame['map']], np.uint16).size == one.target.mask.size


def test_the_explorer_tells_the_page():
    "Controls and viewer are the same in the kernel as in the page; a click is heard; smoothed maps are sent."
    before, one = open_widgets(), explained(2, 2)
    explorer = AttributionExplorer({'a': one, 'b': explained(2, 2, False)})
    viewer = explorer.viewer
    explorer.threshold.value, explorer.sign.value, explorer.percentile.value = .3, 'negative', 90.
    explorer.channel.index, explorer.shown.value, explorer.line.value = 1, False, False
    assert (viewer.threshold, viewer.sign, viewer.limit, viewer.channel, viewer.map, viewer.region) == (.3, 2, 0, 1, False, False)
    viewer.at = 3
    assert explorer.method.value == 'b' and explorer.words['map'].startswith('b')
    viewer.set_state(dict(hand=1, index_0=5, index_1=6))
    assert explorer.voxel == (5, 6) and explorer.words['voxel'] == '5, 6'
    sent = viewer.frames
    explorer.smooth.value = 1.
    assert viewer.frames != sent and np.isclose(viewer.frames[3]['mapLimits'][-1], np.abs(explorer.shown_map).max())
    assert explorer.snapshot().ndim == 3 and not explorer.message.value
    explorer.close()
    assert open_widgets() == before


def test_odd_samples():
    "Truth and prediction of other names, volumes of one slice, invalid voxels, and no labels at all."
    one = explained()
    other = one.sample.replace(classes=('background', 'something else'))
    for sample in (other, one.sample.replace(labels=None), one.sample.replace(valid=one.sample.labels == 0)):
        shown = Attribution(one.map, 'saliency', one.target, sample, one.model, one.prediction, {}, 0., (0, 0))
        explorer = AttributionExplorer(shown)
        assert (explorer.viewer.frames[0]['truth'] is None) == (sample is other or sample.labels is None)
        assert explorer.snapshot().ndim == 3 and not explorer.message.value
        explorer.close()


def test_lesions_in_the_page():
    "Groups are classes of the viewer; the close-up lies where the lesion is, at the border of the image, too."
    image = np.zeros((1, 40, 50), np.float32)
    truth = np.zeros((40, 50), np.uint8)
    truth[0:4, 0:5], truth[20:26, 30:34] = 1, 1
    sample = Sample(image + truth, truth, classes=('background', 'lesion'), spacing=(1., 2.))
    found = np.where(np.indices(truth.shape)[0] < 10, truth, 0)
    explorer = InstanceExplorer(find_instances(found, sample))
    corner, missed = sorted(explorer.list.ids)
    box = surroundings(sample, explorer.found.instance(corner).mask)
    assert all(one.start == 0 for one in box)
    explorer.choose(missed)
    frame, at = explorer.look.close_up.frames[0], explorer.look.close_up.voxel
    assert tuple(np.add(frame['first'], at)) == explorer.voxel and truth[explorer.voxel]
    assert frame['map'] is None and explorer.viewer.way == 1
    seen = set(map(tuple, explorer.snapshot().reshape(-1, 3).tolist()))
    for group in ('TP', 'FN'):  # the list's mark, the page's line and the printed line are of one colour
        colour = [int(GROUPS[group][i:i + 2], 16) for i in (1, 3, 5)]
        assert explorer.viewer.look['palette'][CLASS_OF[group] - 1] == colour and tuple(colour) in seen
    explorer.list.boxes['FN'].value = False
    assert not explorer.viewer.class_4 and explorer.viewer.class_3
    explorer.viewer.set_state(dict(hand=1, index_0=1, index_1=1))
    assert explorer.id == corner
    explorer.close()


def test_time_to_painted_picture(browser, tmp_path, capsys):
    "Three slices of 197 x 233 x 189 with a map and a region: the median of 20, shown and not asserted."
    shape = 197, 233, 189
    z = np.linalg.norm(np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij')), axis=0).astype(np.float32)
    brain = Sample(z[None], affine=np.diag([-1., -1, 1, 1]))
    page = open_page(browser, tmp_path, *_one(framed(brain, .5 - z, region=z < .4)))
    move = """async n => { const out = []; for (let i = 0; i < n; i++) { const t = performance.now();
        viewer.set({voxel: [90 + i % 9, 110 + i % 7, 90 + i % 5]}); await new Promise(requestAnimationFrame); out.push(performance.now() - t) } return out }"""
    took = np.median(page.evaluate(move, 20))
    with capsys.disabled(): print(f'\n  three slices of 197 x 233 x 189 with a map, painted: {took:.1f} ms (of which 0 to 16.7 wait for the screen)')
    assert not page.errors
    page.close()
