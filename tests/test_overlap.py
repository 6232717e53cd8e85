"""Classes that may overlap, from end to end: three discs that lie in each other, and a network that knows where they end."""
import numpy as np
import pytest
import torch
from torch import nn

from misas.all import (
    Brightness,
    Flip,
    Rotation,
    Sample,
    Study,
    Target,
    Translation,
    as_model,
    attribute,
    compare,
    explore,
    load,
    save,
    score,
    sensitivity,
    sensitivity_grid,
    to_html,
    tolerance,
)

NAMES, RADII, LEVELS = ('ET', 'TC', 'WT'), (8, 16, 24), (.7, .5, .3)  # a disc is where the image is brighter than its level


class Nested(nn.Module):
    "Logits of +-5 (nearly) on three channels: brighter than .7, .5 and .3."
    def __init__(self, dims=2, steep=1e4):
        super().__init__()
        self.conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims](1, 3, 1)
        with torch.no_grad():
            self.conv.weight.fill_(steep)
            self.conv.bias.copy_(-steep*torch.tensor(LEVELS))

    def forward(self, x): return 5*torch.tanh(self.conv(x))


def discs(shape=(64, 72), name='discs'):
    far = np.linalg.norm(np.indices(shape) - (np.array(shape).reshape(-1, *[1]*len(shape)) - 1)/2, axis=0)
    scale = min(shape)/64
    stack = np.stack([far < r*scale for r in RADII])
    return Sample(.2 + .2*stack.sum(0), stack, spacing=1.5, classes=NAMES, name=name)


def model(dims=2, **kw): return as_model(Nested(dims), **{'activation': 'sigmoid', 'classes': NAMES, **kw})


@pytest.mark.parametrize('shape', [(64, 72), (30, 28, 26)])
def test_masks_and_scores(shape):
    s, m = discs(shape), model(len(shape))
    assert (m.masks(s)[0] == s.labels).all() and m.masks(s).dtype == bool and m.overlapping and m.n_classes == 3
    assert np.abs(m.predict(s)[0].sum(0) - 1).max() > .5  # no softmax
    assert score(m.masks(s)[0], s.labels, n_classes=3, classes=NAMES).score.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match='masks'): m.label(s)
    one = m.channel('TC')
    assert (one.label(s)[0] == s.labels[1]).all() and one.classes == ('background', 'TC')
    rings = Sample(s.image, np.select(s.labels, [4, 1, 2], 0), spacing=s.spacing, name='rings')
    assert (rings.regions(ET=4, TC=(1, 4), WT=(1, 2, 4)).labels == s.labels).all()


@pytest.mark.parametrize('threshold, found', [(.5, RADII), (.999, (-1, -1, -1)), ({'ET': .999}, (-1, 16, 24)), ((.5, .999, .5), (8, -1, 24))])
def test_thresholds_of_classes(threshold, found):
    s = discs()
    far = np.hypot(*(np.indices(s.shape) - (np.array(s.shape).reshape(2, 1, 1) - 1)/2))
    assert (model(threshold=threshold).masks(s)[0] == np.stack([far < r for r in found])).all()


def test_a_threshold_of_one_channel():
    x = np.linspace(-4, 4, 64).reshape(1, 1, 8, 8)
    for at in (.1, .5, .9):
        m = as_model(nn.Identity(), activation='sigmoid', classes=('background', 'a'), threshold=at)
        assert (m.label(x) == (1/(1 + np.exp(-x[:, 0])) > at)).all()


def test_what_is_not_said_is_asked():
    s, net = discs(), Nested()
    for kw in ({}, {'classes': NAMES}, {'classes': ('background', *NAMES)}):
        with pytest.raises(ValueError, match="activation='sigmoid'"): sensitivity(as_model(net, **kw), s, Flip(), progress=False)
    with pytest.raises(ValueError, match="activation='sigmoid'"): as_model(net, classes=('background', *NAMES)).label(s)  # four names, three channels
    exclusive = as_model(lambda x: np.concatenate([.5 - x, x - .5], 1), activation='softmax', classes=('background', 'disc'))
    with pytest.raises(ValueError, match='regions'): sensitivity(exclusive, s, Flip(), progress=False)
    with pytest.raises(ValueError, match='regions'): sensitivity(model(), s.replace(labels=s.labels[1], classes=None), Flip(), progress=False)


def test_sweep():
    s = discs()
    for t in (Flip(), Translation([-6, 0, 6]), Rotation([0, 90])):  # what moves image and masks alike costs nothing
        r = sensitivity(model(), s, t, metrics=('dice', 'hausdorff95'), progress=False)
        assert list(dict.fromkeys(r.frame['class'])) == list(NAMES)
        inner = r.frame[r.frame['class'] != 'WT'] if t.name == 'translation' else r.frame
        assert (inner.score[inner.metric == 'dice'] > .99).all()
    r = sensitivity(model(), s, Brightness(), [.5, .8, .95, 1, 1.05, 1.2, 2], progress=False)
    whole = r.frame[r.frame.score > .999].groupby('class').value.agg(['min', 'max'])
    # a disc is found while level < b*inside and b*outside < level: ET .7/.8..., with grey values .2 .4 .6 .8
    for name, level, (low, high) in zip(NAMES, LEVELS, ((.6, .8), (.4, .6), (.2, .4))):
        ok = [v for v in r.values if v*low < level < v*high]
        assert whole.loc[name].tolist() == [min(ok), max(ok)]
    r.plot(), r.gallery(), r.summary()
    with pytest.raises(ValueError, match='exclu'): r.confusion()
    table = r.tolerance()
    assert table['class'].tolist() == list(NAMES) and (table.unchanged == 1).all()


def test_sweep_without_labels_and_in_the_original_space():
    s = discs()
    r = sensitivity(model(), s.replace(labels=None, classes=None), Rotation([0, 90, 180]), reference='prediction', space='original', progress=False)
    assert (r.frame.score > .99).all() and r.frame['class'].unique().tolist() == list(NAMES)


def test_tolerance_and_pairs():
    s = discs()
    t = tolerance(model(), s, Brightness())
    assert t.lower < 1 < t.upper
    g = sensitivity_grid(model(), s, (Brightness([.9, 1]), Flip()), progress=False)
    assert set(g.frame['class']) == set(NAMES)


def test_regions_of_a_model_with_label_maps():
    s = discs()
    rings = Sample(s.image, np.select(s.labels, [3, 2, 1], 0), spacing=1.5, classes=('background', 'oedema', 'core', 'enhancing'), name='rings')
    net = as_model(lambda x: np.digitize(x[:, 0], sorted(LEVELS)), classes=rings.classes)
    how = dict(ET='enhancing', TC=('core', 'enhancing'), WT=(1, 2, 3))
    m, parts = net.regions(**how), rings.regions(**how)
    assert (m.masks(parts)[0] == s.labels).all() and (parts.labels == s.labels).all()
    assert (sensitivity(m, parts, Flip(), progress=False).frame.score == 1).all()
    soft = as_model(lambda x: torch.cat([-x, x, 2*x, 3*x], 1), activation='softmax', classes=rings.classes).regions(**how)
    x = torch.rand(1, 1, 9, 8, requires_grad=True)
    z, p = soft.logits(x), soft.predict(x.detach())
    assert np.allclose(torch.sigmoid(z).detach().numpy(), p, atol=1e-5)
    assert torch.autograd.grad(z.sum(), x)[0].abs().sum() > 0


def test_study(tmp_path):
    samples = [discs((64, 60 + 4*i), name=f'case {i}') for i in range(6)]
    models = {'good': model(), 'late': model(threshold={'ET': .5, 'TC': .5, 'WT': .999})}
    study = Study(tmp_path/'s', models, [Flip(), Brightness([.9, 1, 1.1])], metrics=('dice', 'volume_difference')).run(samples, progress=False)
    assert study.failures.empty and set(study.frame['class']) == set(NAMES)
    good = study.frame[(study.frame.model == 'good') & (study.frame['transform'] == 'flip') & (study.frame.metric == 'dice')]
    assert (good.score == 1).all()
    study.summary(), study.plot(), study.gallery(2)
    found = compare(study, models=('good', 'late'))
    assert found.frame is not None
    again = Study(tmp_path/'s')
    assert again.frame.equals(study.frame)


def test_attribution():
    s, m = discs(), as_model(nn.Conv2d(1, 3, 3, padding=1), activation='sigmoid', classes=NAMES)
    net = m.module
    a = attribute(m, s, Target('TC', 'labels'), 'saliency', progress=False)
    x = torch.tensor(s.image[None], requires_grad=True)
    expected = torch.autograd.grad(net(x)[0, 1][torch.as_tensor(s.labels[1])].mean(), x)[0][0].numpy()
    assert np.allclose(a.map, expected, atol=1e-7)
    with torch.no_grad(): net.weight[0] += 1; net.weight[2] -= 1  # other classes play no part
    assert np.allclose(attribute(m, s, Target('TC', 'labels'), 'saliency', progress=False).map, a.map, atol=1e-7)
    odds = attribute(m, s, Target('TC', 'labels', log_odds=True), 'saliency', progress=False)
    assert np.allclose(odds.map, a.map, atol=1e-7)  # of a class by itself, log-odds are its logit
    assert attribute(m, s, Target(2, 'labels', reduce='dice'), 'input_x_gradient', progress=False).map.any()


def test_widgets_and_page(tmp_path):
    s = discs()
    result = sensitivity(model(), s, Brightness([.8, 1, 1.2]), progress=False)
    for widget in (explore(result), explore(s, model()), explore([s, discs(name='other')], model())):
        assert widget.snapshot().shape[2] == 3
        widget.close()
    volume = discs((30, 28, 26))
    explore(volume).close()
    text = open(to_html(result, str(tmp_path/'page.html')), encoding='utf-8').read()
    assert all(name in text for name in NAMES)


@pytest.mark.parametrize('suffix, shape', [('.nii.gz', (30, 28, 26)), ('.nrrd', (30, 28, 26)), ('.png', (64, 72)), ('.tif', (64, 72))])
def test_files(tmp_path, suffix, shape):
    s = discs(shape)
    s = s.replace(image=np.round(s.image*100))
    paths = save(s, tmp_path/f'a{suffix}')
    masks = [p for p in paths if p.name != f'a{suffix}']
    back = load(tmp_path/f'a{suffix}', labels=masks, classes=NAMES) if len(masks) > 1 else load(tmp_path/f'a{suffix}', labels=masks[0], classes=NAMES)
    assert back.overlapping and (back.labels == s.labels).all() and np.allclose(back.image, s.image)


class Five(nn.Module):
    "As networks with deep supervision or heads beside: several outputs of one size."
    def __init__(self, kind): super().__init__(); self.kind = kind
    def forward(self, x):
        outs = [torch.cat([.5 - x, (x - .5)*k], 1) for k in (1, -1, 2, -2, 3)]
        return {'list': outs, 'tuple': tuple(outs), 'dict': dict(zip('abcde', outs))}[self.kind]


@pytest.mark.parametrize('kind', ['list', 'tuple', 'dict'])
def test_several_outputs_are_asked_about(kind):
    s = discs()
    with pytest.raises(ValueError, match='output='): as_model(Five(kind), activation='softmax').label(s)
    key = 'c' if kind == 'dict' else 2
    want = (s.image[0] > .5).astype(int)
    assert (as_model(Five(kind), activation='softmax', output=key).label(s)[0] == want).all()
    assert (as_model(Five(kind), activation='softmax', output=lambda o: o[key]).label(s)[0] == want).all()
    assert (as_model(Five(kind), activation='softmax', output='b' if kind == 'dict' else 1).label(s)[0] != want).any()
    with pytest.raises(ValueError, match='output'): as_model(Five(kind), activation='softmax', output=9).label(s)


def test_outputs_of_another_size():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, stride=4, padding=1))
    x = torch.rand(2, 1, 32, 40)
    with pytest.raises(ValueError, match='resize_output=True'): as_model(net, activation='softmax').label(x)
    m = as_model(net, activation='softmax', resize_output=True)
    with torch.no_grad(): up = nn.functional.interpolate(net(x), (32, 40), mode='bilinear', align_corners=False)
    assert (m.label(x) == up.argmax(1).numpy()).all() and np.allclose(m.predict(x), up.softmax(1).numpy(), atol=1e-6)
    whole = as_model(lambda x: (x[:, 0, ::4, ::4] > .5).astype(int), classes=('background', 'a'), resize_output=True)
    with pytest.raises(ValueError, match='label map'): whole.label(x)
