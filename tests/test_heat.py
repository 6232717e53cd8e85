"Heat maps, studies and comparisons of two models: in a plain page, in a JupyterLab whose kernel has ended, and where scores are odd."
import json

import numpy as np
import pytest
from test_widgets import SHOTS, SHOWN, TOO_WIDE, View, lab, opened, shut_down, until  # noqa: F401 (lab is a fixture)

from misas.data.phantom import disc
from misas.metrics.metric import METRICS, Metric
from misas.models.adapt import as_model
from misas.study.study import Study
from misas.transforms.intensity import Blur, Noise
from misas.transforms.spatial import Rotation
from misas.view.page import asset
from misas.widgets.cohort import StudyExplorer, StudyMaps
from misas.widgets.compare import CompareExplorer, asked
from misas.widgets.grid import GridExplorer
from misas.widgets.heat import Block, Shades, many_scores, one_score, palette, score_map

PAGE = '''<!doctype html><meta charset="utf-8"><title>h</title><body style="margin:8px; %s"><div id="h"></div>
<script type="module">%s
const heat = new Heat(document.getElementById('h'), %s, (what, cell) => { heard.push([what, cell]); });
window.heard = [];
heat.build(%s, [0], 'scores');
heat.paint(%s);
heat.mark(0);
Object.assign(window, {heat, ink, ready: true});
</script>'''
DARK = '--jp-ui-font-color1: #eee; background: #111'


@pytest.fixture(scope='module')
def heat_page(lab, tmp_path_factory):  # noqa: F811
    "A function that opens a page with two blocks of cells, of 12 and of 3 columns, with all kinds of scores."
    rows = [np.linspace(0, 1, 12), [.5, np.nan, np.inf]]
    shades = Shades(METRICS['dice'], np.concatenate(rows))
    cells = [one_score(x, shades) for x in rows[0]] + [many_scores([x, np.nan], shades) for x in rows[1]]
    blocks = [Block(name, 'model', ['a network with a long name'], [f'{i} mm' for i in range(n)], [f'{name} {i}' for i in range(n)])._asdict()
              for name, n in (('blur', 12), ('rotation', 3))]
    shown = score_map(cells, shades, 'dice of disc')
    path = tmp_path_factory.mktemp('heat')/'page.html'

    def open_page(width=1280, dark=False):
        path.write_text(PAGE % (DARK if dark else '', asset('heat.js'), *map(json.dumps, (palette(), blocks, shown))))
        page = lab[2].new_page(viewport=dict(width=width, height=700))
        page.errors = []
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        page.goto(f'file://{path}')
        page.wait_for_function('window.ready')
        return page
    return open_page


def test_keys_and_words(heat_page):
    "Arrow keys stay in the map; where one is, is said; a press opens; there is one Tab stop."
    page = heat_page()
    page.keyboard.press('Tab')
    at = lambda: page.evaluate('heat.cells.indexOf(document.activeElement)')
    assert at() == 0
    for key, cell in (('ArrowRight', 1), ('ArrowLeft', 0), ('ArrowLeft', 0), ('End', 11), ('ArrowRight', 11), ('ArrowDown', 14), ('ArrowDown', 14),
                      ('ArrowUp', 2), ('Home', 0), ('ArrowUp', 0)):
        page.keyboard.press(key)
        assert at() == page.evaluate('heat.at') == cell, key
    page.keyboard.press('ArrowRight')
    assert page.locator('.mh-told').inner_text() == 'blur 1: dice of disc 0.091'
    page.keyboard.press('Enter')
    assert page.evaluate('heard.at(-1)') == ['opened', 1]
    page.locator('.mh button').nth(13).hover()
    assert 'undefined (in all of 2 cases)' in page.locator('.mh-told').inner_text()
    assert page.evaluate('heat.cells.filter(c => c.tabIndex === 0).length') == 1 and not page.errors
    page.close()


def test_what_has_no_number_has_no_colour(heat_page):
    "Undefined and infinite scores are hatched and counted; a score of 0 has the darkest colour."
    page = heat_page()
    colour = lambda n: page.locator('.mh button').nth(n).evaluate('b => getComputedStyle(b).backgroundColor')
    texts = page.locator('.mh button').all_inner_texts()
    assert texts[0] == '0.00' and colour(0) == f'rgb({", ".join(map(str, palette()[0]))})'
    assert [t.split() for t in texts[12:]] == [['0.50', '1×'], ['×', '2×'], ['∞', '1×', '1∞']]
    assert colour(13) == colour(14) == 'rgba(0, 0, 0, 0)' != colour(12)
    assert '× undefined, ∞ infinite' in page.locator('.mh-legend').inner_text()
    for width in (390, 500, 1280):  # worst, colours and best stay in a row
        page.set_viewport_size(dict(width=width, height=700))
        places = [page.locator(f'.mh-scale > {part}').bounding_box() for part in ('span:first-child', 'canvas', 'span:last-child')]
        assert max(o['y'] for o in places) < min(o['y'] + o['height'] for o in places) and places[1]['width'] >= 30
    page.close()


def test_numbers_can_be_read(heat_page):
    "On each of the 256 colours, black or white has a contrast of at least 4.5."
    page = heat_page()
    inks = page.evaluate('heat.palette.map(ink)')
    linear = np.array(palette())/255
    linear = np.where(linear <= .04045, linear/12.92, ((linear + .055)/1.055)**2.4)@[.2126, .7152, .0722]
    contrast = [1.05/(light + .05) if ink == '#fff' else (light + .05)/.05 for ink, light in zip(inks, linear)]
    assert min(contrast) >= 4.5
    page.close()


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [1920, 1280, 390])
def test_it_fits(heat_page, width, dark):
    "No number is cut, and nothing makes the page wider."
    page = heat_page(width, dark)
    assert page.evaluate('document.documentElement.scrollWidth == document.documentElement.clientWidth')
    wide = page.evaluate('[...document.querySelectorAll(".mh, .mh *")].filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth).map(e => e.className)')
    assert wide == (['mh-wide'] if width == 390 else [])  # on a phone twelve cells are moved sideways, so that their numbers can be read
    page.screenshot(path=str(SHOTS/f'heat_{width}_{"dark" if dark else "light"}.png'))
    page.close()


# --- scores of all kinds

@pytest.mark.parametrize('better, dark, bright', [('higher', 0., 1.), ('lower', 1., 0.), ('zero', -1., 0.), ('', 0., 1.), ('unknown', 0., 1.)])
def test_which_way_is_better(better, dark, bright):
    shades = Shades(Metric('own', lambda p, t: 0., better=better), [0., 1., -1. if better == 'zero' else .5, np.nan, np.inf])
    assert shades.level(dark) == 0 and shades.level(bright) == 255 and shades.level(np.nan) == shades.level(np.inf) == -1
    assert ('better' in shades.ends[1]) == (better in ('higher', 'lower', 'zero'))


def test_nothing_is_a_number():
    shades = Shades(METRICS['dice'], [np.nan])
    assert many_scores([], shades).note == 'no case' and many_scores([np.nan], shades).level == -1
    assert Shades(METRICS['hausdorff95'], [3., 3.]).level(3.) == 0 and Shades(METRICS['hausdorff95'], [0., 0.]).level(0.) == 255


# --- studies and grids

def above(limit): return as_model(lambda x: (x[:, 0] > limit).astype(int), classes=('background', 'disc'), name=f'above {limit}')


DISCS = [disc((24, 24), radius=r).replace(name=f'radius {r}') for r in (2, 5, 8)]


def test_study_with_parts_missing(tmp_path):
    "Medians are those of the frame; a transform that one model lacks has no row; a case that has gone is told."
    Study(tmp_path, {'a': above(.3)}, [Blur([0, 3])]).run(DISCS[:2], progress=False)
    study = Study(tmp_path, {'b': above(.9)}, [Noise([0, .1])]).run(DISCS[:2], progress=False)
    maps = StudyMaps(study)
    assert [(row.transform, row.model) for row in maps.rows] == [(t, m) for t, m in dict.fromkeys(zip(study.frame['transform'], study.frame.model))]
    cells = maps.maps()[0, 0, 0]['cells']
    for (row, value), cell in zip(maps.places, cells):
        here = dict(model=row.model, transform=row.transform, value=value)
        some = study.frame[np.logical_and.reduce([study.frame[k] == v for k, v in here.items()])].score
        assert cell.note.startswith(f'{some.median():.3f}')
    panel = StudyExplorer(study)
    first = maps.places.index((maps.rows[0], 0))
    panel.open.click()                                                       # needs a model or a transform that is not here
    assert ('is needed for pictures' in panel.message.value) == (maps.rows[0].model not in study.models or maps.rows[0].transform not in study.runnable)
    assert panel.heat.at == first
    panel.close()


def test_grid_of_a_volume_and_overlapping_classes():
    "Frames of a grid are what the model saw and said, for masks too."
    from misas.data.sample import Sample
    from misas.sweep.pairs import sensitivity_grid
    masks = np.zeros((2, 12, 10, 6), bool)
    masks[0, 2:9, 2:8, 1:5] = masks[1, 4:7, 3:6, 2:4] = True
    sample = Sample(masks.sum(0).astype(np.float32), masks, spacing=(1., 1., 2.), classes=('whole', 'core'))
    def logits(x): return np.concatenate([np.where(x > limit, 5., -5.) for limit in (.5, 1.5)], 1)
    model = as_model(logits, activation='sigmoid', classes=sample.classes)
    grid = sensitivity_grid(model, sample, (Rotation([0, 90]), Noise([0, .2])), progress=False)
    panel = GridExplorer(grid)
    panel.go(90, .2)
    frame = panel.viewer.frames[panel.heat.at]
    bits = np.frombuffer(panel.viewer.pool[frame['prediction']], np.uint8).reshape(frame['shape'])
    found = panel.row.predictions[panel.heat.at]
    assert panel.values == (90, .2) and np.array_equal(bits & 1, found[0]) and np.array_equal(bits >> 1 & 1, found[1])
    panel.close()


def test_two_models_and_a_picture_without_truth():
    panel = CompareExplorer(asked(DISCS[1].replace(labels=None), {'a': above(.3), 'b': above(.3)}))
    assert 'both agree' in panel.scores.value and '1.000' in panel.scores.value and panel.slider.layout.display == 'none'
    assert panel.snapshot().ndim == 3
    panel.close()


def test_large_grids_send_their_frames_when_asked(monkeypatch):
    from misas.sweep.pairs import sensitivity_grid
    monkeypatch.setattr('misas.widgets.sweep.PAGE', 1000)
    panel = GridExplorer(sensitivity_grid(above(.5), DISCS[0], (Blur([0, 3]), Noise([0, .1])), progress=False))
    assert [frame is None for frame in panel.viewer.frames] == [i != panel.heat.at for i in range(4)]
    frame, pool = panel.frames.alone(3)
    assert np.array_equal(np.frombuffer(pool.bytes[frame['prediction']], np.uint8), panel.row.predictions[3].ravel())
    panel.close()


# --- in JupyterLab

EXPLORED = '''
import tempfile
from IPython.display import display
from misas.all import *
from misas.data.cohort import Case
from misas.data.phantom import ThresholdModel, short_axis
def heart(i):
    h = short_axis((64, 64), spacing=4.5, seed=i)
    return Sample(h.image, h.image[0] > 500, spacing=4.5, classes=('background', 'bright'), name=f'patient {i}')
hearts = [heart(i) for i in range(4)]
nets = {name: as_model(ThresholdModel(t), classes=hearts[0].classes, name=name) for name, t in (('low', 420.), ('high', 560.))}
cases = [Case(h.name, h, info={'site': 'AB'[i % 2]}) for i, h in enumerate(hearts)]
study = Study(tempfile.mkdtemp(), nets, [Noise([0, .1, .2]), Brightness([.8, 1])]).run(cases, progress=False)
grid = sensitivity_grid(nets['low'], hearts[0], (Brightness([.8, 1, 1.2]), Noise([0, .1])), metrics=('dice', 'hausdorff95'), progress=False)
swept = [sensitivity(net, hearts[0], Noise([0, .1, .2]), progress=False) for net in nets.values()]
for one in (grid, swept, study): display(explore(one))
'''


def test_in_jupyterlab(lab):  # noqa: F811
    "A cell shows its picture, a wipe cuts two models, a cell of a study opens its cases; then without a kernel."
    here = {}
    exec(EXPLORED.rsplit('for one in', 1)[0], here)
    page = opened(lab, None, EXPLORED)
    view, second = View(page), View(page, 1)
    row = GridExplorer(here['grid']).row
    shown = lambda n: page.evaluate(SHOWN, ['O-value', n])
    told = lambda n: page.locator('.mh').nth(n).locator('.mh-told').inner_text()

    def at(cell):
        "Is the picture that of a cell of the grid?"
        return np.array_equal(shown(0)['prediction'], row.predictions[cell].ravel())

    grid_cells, study_cells = (page.locator('.O-heat').nth(n).locator('button') for n in (0, 1))
    grid_cells.nth(3).click()
    until(page, lambda: at(3) and 'brightness 1, noise 0.1' in told(0))
    study_cells.nth(1).click()                                                 # low, noise .1
    until(page, lambda: page.locator('.widget-html', has_text='low: noise 0.1').count() == 1 and '4 of 4' in view['N-page'].inner_text())
    view['M-cases'].locator('select').select_option('site: B')
    until(page, lambda: '2 of 2' in view['N-page'].inner_text() and 'median of 2 cases' in told(1))
    view['B-tile1'].click()
    until(page, lambda: view['B-tile1'].inner_text().strip() in view['N-title'].inner_text())
    assert page.evaluate(TOO_WIDE) == []
    page.screenshot(path=str(SHOTS/'heat_lab.png'))

    shut_down(page)
    grid_cells.nth(3).focus()
    page.keyboard.press('ArrowUp')
    until(page, lambda: at(1) and 'brightness 0.8, noise 0.1' in told(0))
    view['M-metric'].locator('select').select_option('hausdorff95')
    until(page, lambda: 'mm' in told(0))
    wipe = lambda: page.evaluate("document.querySelectorAll('.O-value')[1].querySelector('.mv').viewer.state")
    view.press('S-wipe', 'ArrowLeft', 3)
    until(page, lambda: abs(wipe()['wipe'] - .47) < 1e-6)
    view.press('S-value', 'ArrowRight')
    until(page, lambda: np.array_equal(shown(1)['prediction'], here['swept'][0].predictions[1].ravel()))
    second['M-filled'].get_by_text('differ').click()
    until(page, lambda: wipe()['mode'] == 'differ')
    assert set(page.errors) <= {'Cannot send'}, page.errors                    # ipywidgets' toggles tell a click to a kernel that has gone
    page.close()
