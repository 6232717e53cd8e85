"""Figures can be read: texts of at least 8 points that are inside and do not overlap, axes with labels, legends beside the data;
classes that can be told apart."""
import base64
import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

import nbrun
from misas.attribution.attribute import attribute
from misas.attribution.complexity import complexity
from misas.attribution.curves import deletion
from misas.attribution.localisation import localisation
from misas.data.phantom import short_axis, short_axis_stack
from misas.inside.target import Target
from misas.instances.find import find_instances
from misas.models.adapt import as_model
from misas.study.compare import compare
from misas.study.diagnose import diagnose
from misas.study.study import Study
from misas.sweep.pairs import sensitivity_grid
from misas.sweep.repeated import repeated
from misas.sweep.sensitivity import sensitivity
from misas.sweep.tolerance import tolerance
from misas.transforms.intensity import Brightness, Noise
from misas.transforms.spatial import Rotation
from misas.transforms.voxels import Flip, Resolution
from misas.trust.calibration import calibration
from misas.trust.failure import risk_coverage
from misas.view import draw, map_views, maps, panels, plot, thin
from misas.view.cohort import cohort_curves
from misas.view.layout import SMALL

# ---- what a figure is asked ----


def boxes(fig):
    "(text, its box in pixels, the axes it belongs to, what it is) of each text that is seen."
    out = []
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
            low, high = sorted(axis.get_view_interval())
            room = 1e-6*(high - low)
            for tick in axis.get_major_ticks():
                if not low - room <= tick.get_loc() <= high + room: continue
                out += [(text, ax, 'tick') for text in (tick.label1, tick.label2)]
            out.append((axis.label, ax, 'label'))
        out += [(text, ax, 'title') for text in (ax.title, ax._left_title, ax._right_title)]
        out += [(text, ax, 'text') for text in ax.texts]
        if ax.get_legend(): out += [(text, ax, 'legend') for text in ax.get_legend().findobj(Text)]
    out += [(text, None, 'figure') for text in [*fig.texts, *filter(None, [fig._suptitle])]]
    for one in fig.legends: out += [(text, None, 'legend') for text in one.findobj(Text)]
    seen = {id(text): (text, text.get_window_extent(), ax, kind) for text, ax, kind in out if text.get_visible() and text.get_text().strip()}
    return list(seen.values())


def small(texts):
    return {f'{text.get_text()!r} has {text.get_fontsize():g} points' for text, *_ in texts if text.get_fontsize() < SMALL - .01}


def clipped(fig, texts):
    page = fig.bbox.padded(1.5)
    inside = lambda box: page.x0 <= box.x0 and page.y0 <= box.y0 and box.x1 <= page.x1 and box.y1 <= page.y1
    return {f'{text.get_text()!r} ({kind}) is cut off' for text, box, _, kind in texts if not inside(box)}


def overlapping(texts):
    "Texts that share more than a tenth of the smaller one. The box of a slanted text is larger than the text."
    upright = [one for one in texts if one[0].get_rotation() % 90 == 0]
    first, last = (np.array([getattr(box, end) for _, box, *_ in upright]).reshape(-1, 1, 2) for end in ('min', 'max'))
    shared = (np.minimum(last, last.swapaxes(0, 1)) - np.maximum(first, first.swapaxes(0, 1))).clip(0).prod(-1)
    areas = (last - first).prod(-1)
    found = np.argwhere(np.triu(shared > .1*np.minimum(areas, areas.T), 1))
    return {f'{upright[i][0].get_text()!r} overlaps {upright[j][0].get_text()!r}' for i, j in found}


NUMBER = re.compile(r'[-−+]?[\d.,]+(e[-−+]?\d+)?%?|\$\\mathdefault\{.*\}\$')


def unnamed(fig, texts):
    "Axes with numbers and without a name of what they are, there or at axes of the same row or column."
    out = set()
    for ax in fig.axes:
        for axis, which, same in ((ax.xaxis, 'x', 0), (ax.yaxis, 'y', 1)):
            own = [axis.get_major_ticks()[k].label1 for k in range(len(axis.get_major_ticks()))]
            numbers = [t for t, _, of, kind in texts if of is ax and kind == 'tick' and t in own and NUMBER.fullmatch(t.get_text().strip())]
            place = lambda one: one.get_position().get_points()[:, same].round(2).tolist()
            beside = [other for other in fig.axes if place(other) == place(ax)]
            named = any(getattr(other, f'get_{which}label')().strip() for other in beside)
            if numbers and not named: out.add(f'the {which} axis of {ax.get_title()!r} has numbers and no name')
    return out


def points_of(ax):
    "What is drawn in axes: points in pixels, ten on each piece of a line."
    out = [np.empty((0, 2))]
    between = np.linspace(0, 1, 10)[:, None, None]
    for line in ax.lines:
        xy = line.get_transform().transform(np.ma.filled(np.ma.masked_invalid(line.get_xydata().astype(float)), np.nan))
        if line.get_linestyle() != 'None' and len(xy) > 1: xy = np.concatenate([xy, (xy[:-1] + between*(xy[1:] - xy[:-1])).reshape(-1, 2)])
        out.append(xy)
    for patch in ax.patches: out.append(patch.get_window_extent().corners())
    for group in ax.collections:
        if len(group.get_offsets()) > 1: out.append(group.get_offset_transform().transform(np.ma.filled(group.get_offsets(), np.nan)))
    xy = np.concatenate(out)
    return xy[np.isfinite(xy).all(1)]


def hiding(fig):
    "Legends over images or over what is drawn."
    out = set()
    for one in [*fig.legends, *(ax.get_legend() for ax in fig.axes if ax.get_legend())]:
        box = one.get_window_extent()
        for ax in fig.axes:
            xy = points_of(ax)
            covered = (xy > box.min) & (xy < box.max)
            if ax.images and ax.axison and box.overlaps(ax.get_window_extent()) and one.axes is ax and box.x0 < ax.get_window_extent().x1 - 2:
                out.add('the legend hides a picture')
            if covered.all(1).any(): out.add('the legend hides what is drawn')
    return out


def faults(fig):
    "What cannot be read in a figure, in sentences."
    fig.canvas.draw()
    texts = boxes(fig)
    return sorted(small(texts) | clipped(fig, texts) | overlapping(texts) | unnamed(fig, texts) | hiding(fig))


# ---- figures of the library, on small results ----


def thirds(x):
    "A network that goes by grey values: probabilities of background and three classes."
    edges = np.array([-.1, .25, .5, .8])[None, :, None, None]
    scores = -np.abs(x/900 - edges)*20
    odds = np.exp(scores - scores.max(1, keepdims=True))
    return odds/odds.sum(1, keepdims=True)


HEART = short_axis((96, 96), spacing=2.4)
MODEL = as_model(thirds, classes=HEART.classes, name='goes by grey values')
OTHER = as_model(lambda x: thirds(1.1*x), classes=HEART.classes, name='brighter')
CASES = [short_axis((48, 48), spacing=4.8, seed=k).replace(name=f'case {k}') for k in range(8)]
BRIGHTER, TURNED = Brightness([.5, .7, 1, 1.4, 2]), Rotation([-90, -30, 0, 30, 90])
QUIET = dict(progress=False)


@pytest.fixture(scope='module')
def sweep(): return sensitivity(MODEL, HEART, BRIGHTER, metrics=('dice', 'hausdorff95'), **QUIET)


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    made = Study(tmp_path_factory.mktemp('study'), {'one': MODEL, 'another': OTHER}, [BRIGHTER, TURNED, Flip()])
    made.run(CASES, **QUIET)
    return made


@pytest.fixture(autouse=True)
def closed():
    "Figures as scripts save them: whatever is beyond their ends is lost."
    with plt.rc_context({'figure.dpi': 80, 'savefig.bbox': 'standard'}): yield
    plt.close('all')


def fine(fig): assert not faults(fig), '\n'.join(faults(fig))


@pytest.mark.parametrize('make', ['plot', 'gallery', 'confusion'])
def test_sensitivity(sweep, make): fine(getattr(sweep, make)())


def test_one_metric(sweep): fine(sweep.plot('dice'))
def test_flips(): fine(sensitivity(MODEL, HEART, Flip(), **QUIET).plot())
def test_tolerance(): fine(tolerance(MODEL, HEART, BRIGHTER).plot())
def test_repeated(): fine(repeated(MODEL, HEART, Noise([0, .1, .2]), n=3, **QUIET).plot())


@pytest.mark.parametrize('make', ['plot', 'gallery'])
def test_grid(make):
    fine(getattr(sensitivity_grid(MODEL, HEART, (Brightness([.5, 1, 2]), Noise([0, .05, .1, .2])), **QUIET), make)())


@pytest.mark.parametrize('make', ['plot', 'plot_ranking', 'distribution'])
def test_study(study, make): fine(getattr(study, make)())


def test_study_gallery(study): fine(study.gallery(3, model='one'))
def test_compare(study): fine(compare(study, n=100).plot())
def test_calibration(): fine(calibration(MODEL, CASES, n=100).plot())


def test_diagnosis():
    how = dict(tried=[Brightness([.5, 1, 2])], borne=[Noise([0, .1])], **QUIET)
    fine(diagnose(MODEL, CASES, **how).plot())


def test_risk_coverage():
    rng = np.random.default_rng(0)
    fine(risk_coverage(rng.random(30), rng.random(30), n=100).plot())


def test_attribution():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, padding=1))
    model = as_model(net, classes=HEART.classes, activation='softmax', name='a network')
    found = attribute(model, HEART, Target('LV', 'labels'), 'saliency')
    fine(found.plot())
    fine(localisation(found).plot())
    fine(complexity(found).plot())
    fine(deletion(found, n_random=2).plot())


def test_instances():
    truth, answer = np.zeros((2, 60, 80), int)
    for k in range(4): truth[10 + 10*k:16 + 10*k, 10 + 15*k:18 + 15*k] = answer[11 + 10*k:17 + 10*k, 5 + 15*k:17 + 18*k] = 1
    answer[50:55, 5:12] = 1
    fine(find_instances(answer, HEART.replace(image=np.zeros((1, 60, 80)), labels=truth, valid=None, classes=None)).plot())


# ---- many classes, long names, several axes ----

NAMES = ['background', *(f'structure {k}' for k in range(1, 18))]


def bands(n=17, size=170):
    "Labels of n classes, as stripes."
    return np.minimum(np.arange(size)*n//size, n - 1)[:, None].repeat(size, 1) + 1


def test_seventeen_classes():
    s = HEART.replace(image=np.linspace(0, 1, 170*170).reshape(1, 170, 170), labels=bands(), valid=None, classes=NAMES)
    fine(plot.show(s, np.roll(bands(), 5, 0)))
    fine(plot.gallery([s]*3, [bands()]*3, ['a title that is much longer than the picture under it is wide']*3))
    counts = np.random.default_rng(0).integers(1, 100, (18, 18))
    fine(plot.confusion_matrices([counts], ['unchanged'], NAMES))
    rows = [('noise', v, '', name, 'dice', 1 - v*k/20) for k, name in enumerate(NAMES[1:]) for v in (0, .1, .2)]
    fine(plot.curves(pd.DataFrame(rows, columns='transform value unit class metric score'.split()), 0))


def test_more_classes_than_colours():
    "Classes of the same colour have another pattern, filled and as lines."
    s = HEART.replace(image=np.zeros((1, 250, 250)), labels=bands(25, 250), valid=None, classes=None)
    fig = plot.show(s, bands(25, 250))
    handles = fig.axes[0].get_legend().legend_handles
    assert len({(one.get_facecolor(), one.get_hatch()) for one in handles[:25]}) == 25
    looks = panels.looks([('a', f'c{k}') for k in range(25)])[1]
    assert len({(look['color'], look['ls']) for look in looks.values()}) == 25


def test_volume_and_maps():
    v = short_axis_stack((60, 50, 8))
    fine(plot.show(v, v.labels, axis=1))
    fine(maps.show_map(HEART, HEART.image - 300, target=HEART.labels == 3, unit='logit per grey value'))
    fine(maps.side_by_side(HEART, {'one': HEART.image, 'another': -HEART.image}, units='logit', size=2.))
    fine(map_views.volume_views(v, v.image - 300, target=v.labels == 3, unit='logit', title='a map\nof a volume'))
    fine(map_views.plot_attribution(HEART, HEART.image - 300, title='saliency', about='mean logit of LV', unit='logit'))


# ---- all that is drawn is inside ----


def outside(fig):
    "Finite points of lines that are above or below their axes."
    out = []
    for ax in fig.axes:
        low, high = sorted(ax.get_ylim())
        heights = [np.asarray(line.get_ydata(), float) for line in ax.lines if line.get_transform() == ax.transData]
        out += [(ax.get_ylabel(), y) for line in heights for y in line[np.isfinite(line)] if not low <= y <= high]
    return out


@pytest.mark.parametrize('metric, near, far', [('hausdorff95', 3., 12.), ('volume_difference', -2., -40.), ('volume', 90., 200.)])
def test_a_perfect_model_is_inside(metric, near, far):
    "It can be worse than the model that is judged, far beyond its scores; where it is undefined or infinite, nothing is drawn."
    best = [near/2, far, np.nan, np.inf]
    rows = [('resolution', v, '', name, metric, near, c) for name in ('LV', 'MYO') for v, c in zip((1., 2., 3., 4.), best)]
    frame = pd.DataFrame(rows, columns='transform value unit class metric score ceiling'.split())
    assert not outside(plot.curves(frame, 1.))
    cases = pd.concat([frame.assign(model='one', sample=name) for name in 'abc'])
    assert not outside(cohort_curves(cases, {'resolution': Resolution([1, 2, 3, 4])}, n=100))


# ---- classes can be told apart ----

SIGHTS = {  # of Machado, Oliveira and Fernandes (2009), for linear light
    'usual': np.eye(3),
    'protanopia': [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
    'deuteranopia': [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.01182, .04294, .968881]]}


def linear(rgb): return np.where(rgb <= .04045, rgb/12.92, ((rgb + .055)/1.055)**2.4)


def as_lab(colours, sight):
    "Colours, as '#rrggbb', as somebody with this colour vision sees them."
    rgb = np.array([list(bytes.fromhex(one[1:])) for one in colours])/255
    light = (linear(rgb) @ np.transpose(SIGHTS[sight])).clip(0, 1)
    return rgb2lab(np.where(light <= .0031308, light*12.92, 1.055*light**(1/2.4) - .055)[None])[0]


def nearest(colours, others=None, sight='usual'):
    "The smallest CIEDE2000 difference: 1 is just seen, 10 is another colour at a glance."
    lab = as_lab(colours, sight)
    if others is not None: return deltaE_ciede2000(lab[:, None], as_lab(others, sight)[None]).min()
    return deltaE_ciede2000(lab[:, None], lab[None])[np.triu_indices(len(lab), 1)].min()


@pytest.mark.parametrize('sight, four, twelve, twenty', [('usual', 34, 16, 10), ('protanopia', 19, 11, 7), ('deuteranopia', 19, 11, 7)])
def test_colours_differ(sight, four, twelve, twenty):
    for n, least in ((4, four), (12, twelve), (20, twenty)): assert nearest(draw.COLOURS[:n], sight=sight) >= least
    assert nearest(draw.COLOURS, [draw.MARKER], sight) >= 10


def test_colours_are_seen():
    "On paper as lines and texts, and on black; and against grey tissue."
    for code in draw.COLOURS:
        light = linear(np.array(list(bytes.fromhex(code[1:])))/255) @ [.2126, .7152, .0722]
        assert 1.05/(light + .05) >= 2.5 and (light + .05)/.05 >= 2.5, code
        lab = as_lab([code], 'usual')[0]
        assert np.hypot(*lab[1:]) > 20, code


@pytest.mark.parametrize('sight', SIGHTS)
@pytest.mark.parametrize('k', range(1, 21))
def test_parts_of_thin_classes_differ(k, sight): assert nearest(thin.part_colours(k), sight=sight) >= 12


# ---- the checks themselves ----


@pytest.mark.parametrize('told, spoil', [
    ('5 points', lambda fig, ax: ax.set_title('small', fontsize=5)), ('cut off', lambda fig, ax: fig.text(.95, .5, 'a long text that leaves')),
    ('overlaps', lambda fig, ax: [ax.text(.5, .5, word) for word in ('one', 'two')]), ('no name', lambda fig, ax: ax.set_ylabel('')),
    ('hides what is drawn', lambda fig, ax: ax.legend(loc='lower left'))])
def test_faults_are_found(told, spoil):
    fig, ax = plt.subplots(figsize=(4, 3), layout='constrained')
    ax.plot([0, 1], [0, 1], label='a line')
    ax.set(xlabel='x', ylabel='y')
    fine(fig)
    spoil(fig, ax)
    assert any(told in one for one in faults(fig)), faults(fig)


# ---- pictures in notebooks ----


def as_output(pixels, width):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, 'PNG')
    return dict(output_type='display_data', data={'image/png': base64.b64encode(out.getvalue()).decode()}, metadata={'image/png': {'width': width}})


def test_pictures_of_notebooks_stay_small():
    "A notebook gets the best pictures for which there is room: few shades where there is little."
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 1), np.uint8).repeat(3, 2)
    sizes = []
    for most in (150_000, 60_000, 25_000):
        nb = dict(cells=[dict(outputs=[as_output(noise, 150)])])
        nbrun.small_pictures(nb, most)
        sizes.append(len(json.dumps(nb)))
        assert sizes[-1] < most and nbrun.shown_width(nb['cells'][0]['outputs'][0]) == 150
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[2]


def test_colours_of_legends_stay():
    "What covers much, and a small patch, keep their colour, and greys stay grey."
    shades = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 256, 3))
    shades[:, :60] = np.random.default_rng(0).integers(0, 256, (256, 60, 3))
    shades[:20, 100:120] = (105, 150, 255)
    few = np.asarray(nbrun.few_colours(Image.fromarray(shades), 32, 60).convert('RGB')).astype(int)
    assert (few[:20, 100:120] == (105, 150, 255)).all()
    assert np.abs(few - shades)[:, 130:].max() <= 5 and np.ptp(few[:, 130:], axis=-1).max() == 0
    assert len(np.unique(few.reshape(-1, 3), axis=0)) <= 92


def test_outputs_are_compared_as_they_are_shown():
    "The same picture in twice as many pixels, shown as large, is the same; shown larger it is another one."
    pixels = np.zeros((100, 120, 3), np.uint8)
    pixels[20:50, 30:90] = 200
    twice = pixels.repeat(2, 0).repeat(2, 1)
    assert nbrun.same_picture(as_output(pixels, 120), as_output(twice, 120))
    assert not nbrun.same_picture(as_output(pixels, 120), as_output(twice, 240))
    assert not nbrun.same_picture(as_output(pixels, 120), as_output(255 - pixels, 120))
