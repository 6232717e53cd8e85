"Embeddings, concepts and parts of networks of all kinds: volumes, windows, classes that overlap, input that does not fit."
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from misas.data.cases import Cases
from misas.data.phantom import disc
from misas.data.sample import Sample
from misas.inside.question import Refused
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.hold import trace
from misas.structure.concept import concept, gradient_of, tcav
from misas.structure.embed import embed
from misas.structure.parts import contributed, parts
from misas.structure.pooled import Pooled, voxelwise
from misas.transforms.intensity import Noise
from misas.transforms.spatial import Translation

CLASSES = 'background', 'disc'
QUIET = dict(n_random=20)


def pictures(n=6, shape=(32, 32)):
    "Discs of several sizes; balls, where there are three axes."
    made = [disc(shape=shape, radius=min(shape)/(3 + k/2)).replace(name=f'{k}') for k in range(n)]
    return [Noise()(one, .02) for one in made]


def plain(dims=2, out=2):
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    torch.manual_seed(0)
    return nn.Sequential(conv(1, 6, 3, padding=1), nn.ReLU(), conv(6, 6, 3, padding=1), nn.Softplus(), conv(6, out, 1))


def meshnet():
    "Dilated convolutions in three dimensions, as in MeshNet."
    torch.manual_seed(0)
    def block(before, apart): return nn.Conv3d(before, 5, 3, padding=apart, dilation=apart), nn.BatchNorm3d(5), nn.ReLU()
    return nn.Sequential(*block(1, 1), *block(5, 2), *block(5, 4), nn.Conv3d(5, 2, 1)).eval()


def monai_unet(norm='batch', dims=2):
    from monai.networks.nets import UNet
    torch.manual_seed(0)
    return UNet(dims, 1, 2, channels=(4, 8, 16), strides=(2, 2), norm=norm, act='relu').eval()


def fastai_unet():
    from fastai.vision.models.unet import DynamicUnet
    torch.manual_seed(0)
    def block(before, after): return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())
    return DynamicUnet(nn.Sequential(block(1, 4), block(4, 8), block(8, 16)), 2, (32, 32)).eval()


NETS = {
    'plain': (plain, (32, 32)), 'fastai': (fastai_unet, (32, 32)), 'monai': (monai_unet, (32, 32)), 'meshnet': (meshnet, (16, 16, 12)),
    'monai 3D': (lambda: monai_unet(dims=3), (16, 16, 16))}


@pytest.mark.parametrize('name', NETS)
def test_every_network(name):
    "Embedded, changed, and asked for a concept; unchanged afterwards, and with the same numbers twice."
    make, shape = NETS[name]
    net, samples = make(), pictures(shape=shape)
    before, model = trace(net), as_model(net, classes=CLASSES)
    target = Target('disc', np.ones(shape, bool))
    def numbers():
        places = embed(model, samples)
        path = places.path(samples[2], Noise(), [0, .1])
        sizes = concept(model, samples, values=lambda one: one.labels.sum(), name='size', **QUIET)
        rises = sizes.tcav(samples[:2], target)
        own = places.frame.loc[2, ['x', 'y']].tolist()
        assert path.frame.loc[0, ['x', 'y']].tolist() == own and path.frame.distance[0] == 0 < path.frame.distance[1]
        return places.frame[['x', 'y']].to_numpy(), sizes.direction, rises.frame[['score', 'p', 'slope', 'p_slope']].to_numpy()
    assert all(np.array_equal(*both) for both in zip(numbers(), numbers()))
    assert trace(net) == before


def disc_finder(dims=2):
    "A network that predicts where it is bright, with layers before."
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    torch.manual_seed(0)
    net = nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU(), conv(4, 2, 1))
    with torch.no_grad():
        net[0].weight[0].zero_()
        net[0].weight[(0, 0, *[1]*dims)] = 1
        net[0].bias[0] = 0
        net[2].weight.zero_()
        net[2].weight[1, 0] = 20
        net[2].bias.copy_(torch.tensor([0., -10.]))
    return net


WRAPPED = {
    'slicewise': (lambda: as_model(disc_finder(), classes=CLASSES).slicewise(), (24, 24, 12)),
    'sliding': (lambda: as_model(disc_finder(), classes=CLASSES).sliding(16), (32, 32)),
    'resized': (lambda: as_model(disc_finder(), classes=CLASSES, size=(48, 48)), (32, 32)),
    'padded': (lambda: as_model(disc_finder(), classes=CLASSES, multiple_of=16), (30, 27)),
    'kept': (lambda: as_model(disc_finder(), classes=CLASSES).keep('disc'), (32, 32)),
    'regions': (lambda: as_model(disc_finder(), classes=CLASSES).regions(all=(1,)), (32, 32))}


@pytest.mark.parametrize('name', WRAPPED)
def test_wrapped_models(name):
    make, shape = WRAPPED[name]
    model, samples = make(), [one.replace(labels=None, classes=None) for one in pictures(4, shape)]
    places = embed(model, samples, pool='prediction')
    assert len(places.frame) == 4 and places.there.all()
    cells = embed(model, samples, pool='voxels', voxels=30)
    assert len(cells.frame) == 120 and cells.frame['class'].nunique() == 2
    at = cells.frame.filter(['row', 'column', 'i', 'j', 'k']).to_numpy()
    assert (at > -.51).all() and (at < np.array(shape) - .49).all()  # on the image, not in its padding
    found = concept(model, samples, values=[4, 3, 2, 1], pool='prediction', **QUIET)
    assert np.isfinite(found.tcav(samples[:2], model.foreground[0]).frame.slope).all()


@pytest.mark.parametrize('pool', ['image', 'prediction'])
@pytest.mark.parametrize('name', ['plain', 'sliding', 'padded'])
def test_the_derivative_is_what_the_score_does(pool, name):
    "A small step along a direction, put into the layer by a hook, changes the score as the derivative says."
    net = nn.Sequential(*disc_finder()[:2], nn.Conv2d(4, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 2, 1)).double()
    how = dict(classes=CLASSES) | (dict(multiple_of=16) if name == 'padded' else {})
    model = as_model(net, **how)
    if name == 'sliding': model = model.sliding(16)
    one = pictures(1, (30, 27))[0]
    target, pooled = Target('disc', 'labels'), Pooled(model, one, '1', pool)
    slopes, direction = gradient_of(pooled, one, target), np.random.default_rng(0).standard_normal(4)
    frozen = target.freeze(model, one)
    heard = pooled.hear(one)
    region = pooled.region(heard.prediction) if pool == 'prediction' else np.ones(one.shape)
    shares = [part/whole.clamp_min(1e-9) for part, whole in
              zip(heard.weights('1', region), heard.weights('1', np.ones(one.shape)))] if pool == 'prediction' else None
    def moved(step):
        calls = iter(shares) if shares else None
        def change(_, args, out):
            share = next(calls)[:, None] if calls else 1
            return out + step*share*torch.as_tensor(direction).view(1, 4, 1, 1)
        hook = net[1].register_forward_hook(change)
        try:
            with torch.no_grad(): return float(frozen.score(model, torch.as_tensor(one.image[None]).double()))
        finally: hook.remove()
    assert abs((moved(1e-4) - moved(-1e-4))/2e-4 - slopes @ direction) < 1e-3*max(1, abs(slopes @ direction))


def test_overlapping_classes():
    names = 'inner', 'outer'
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[0].weight[:2] = torch.tensor([[0., 0, 0], [0, 1, 0], [0, 0, 0]])
        net[0].bias[:2] = 0
        net[2].weight.copy_(40*torch.eye(3)[:2].view(2, 3, 1, 1))
        net[2].bias.copy_(torch.tensor([-30., -10.]))
    model = as_model(net, classes=names, activation='sigmoid')
    far = np.hypot(*(np.indices((24, 24)) - 11.5))
    samples = [Sample(.5*(far < r) + .5*(far < r/2), np.stack([far < r/2, far < r]), classes=names, name=f'{r}') for r in (5, 6, 7, 8, 9)]
    samples = [Noise()(one, .01) for one in samples]
    inner, outer = (embed(model, samples, pool='prediction', cls=name) for name in names)
    assert (inner.features[:, 0] > outer.features[:, 0]).all()  # only the bright middle
    assert (inner.frame.score > .9).all()
    cells = embed(model, samples, pool='voxels', voxels=200)
    assert set(cells.frame['class']) == {'background', *names}
    found = concept(model, samples, values=range(5), pool='prediction', cls='outer', **QUIET)
    assert found.tcav(samples, 'outer').frame.images[0] == 5


def test_points_that_have_no_place():
    model, samples = as_model(disc_finder(), classes=CLASSES), pictures()
    dark = samples[0].replace(image=0*samples[0].image, name='dark')
    places = embed(model, [*samples, dark], pool='prediction')
    assert places.frame.x.isna().tolist() == [False]*6 + [True] and len(places.frame) == 7
    assert 'Without a place: 1, in which nothing of foreground is predicted' in str(places)
    path = places.path(samples[0], Translation(), [0, 100])  # out of the field of view
    assert path.frame.x.isna().tolist() == [False, True] and 'at 1 values nothing' in str(path)
    with pytest.raises(ValueError, match="sample 'dark': nothing of foreground is predicted"):
        concept(model, [*samples, dark], values=range(7), pool='prediction')


def test_what_does_not_fit():
    model, samples = as_model(plain(), classes=CLASSES), pictures()
    with pytest.raises(ValueError, match='no layer'): concept(model, samples, values=range(6), layer='x')
    with pytest.raises(ValueError, match='no layer'): embed(model, samples, layer='x')
    function = as_model(lambda x: x > .5, classes=CLASSES)
    with pytest.raises(Refused, match='is a function'): embed(function, samples)
    with pytest.raises(Refused, match='is a function'): concept(function, samples, values=range(6))
    still = [samples[0]]*4
    with pytest.raises(ValueError, match='same for all points'): embed(model, still)
    with pytest.raises(ValueError, match='gives the same for all samples'): concept(model, still, values=range(4), groups=range(4))
    with pytest.raises(ValueError, match='at least 3 points, got 2'): embed(model, samples[:2])
    with pytest.raises(ValueError, match='at least 4 points, got 3'): embed(model, samples[:3], n_components=3)
    with pytest.raises(ValueError, match='n_components must be 2 or 3'): embed(model, samples, n_components=1)
    with pytest.raises(ValueError, match='level must be'): concept(model, samples, values=range(6), level=2)
    with pytest.raises(TypeError, match='transform must be'): embed(model, samples, transform='noise')
    a, b = (concept(model, samples, values=range(6), layer=layer, name=layer, **QUIET) for layer in ('1', '3'))
    with pytest.raises(ValueError, match='concepts must be of one layer'): tcav([a, b], samples, Target('disc', 'labels'))


def test_umap_where_it_is_installed():
    from importlib.util import find_spec
    model, samples = as_model(plain(), classes=CLASSES), pictures()
    def numbers(): return embed(model, samples, method='umap', n_neighbors=2, transform=Noise(), values=[0, .1, .2]).frame[['x', 'y']]
    if find_spec('umap') is None:
        with pytest.raises(ImportError, match='pip install umap-learn'): numbers()
    else: assert numbers().equals(numbers())


def test_a_norm_that_removes_the_direction():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, padding_mode='circular'),
                        nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    model, samples = as_model(net, classes=CLASSES), pictures()
    found = concept(model, samples, values=range(6), layer='1', **QUIET)
    with pytest.raises(Refused, match='removed by the InstanceNorm behind it'): found.tcav(samples, Target('disc', 'labels'))


def test_patients_stay_together():
    import pandas as pd
    samples = pictures(8)
    frame = pd.DataFrame({'patient': list('aabbccdd'), 'at': range(8)})
    cases = Cases(frame, lambda row: samples[row['at']])
    model = as_model(plain(), classes=CLASSES)
    found = concept(model, cases, values=frame['at'], **QUIET)
    assert found.quality.clusters == 4 and np.isnan(found.quality.low)  # too few for an interval
    assert 'too few for an interval' in str(found) and found.frame.group.tolist() == list('aabbccdd')
    both = concept(model, cases.where(patient=['a', 'b', 'c']), cases.where(patient=['b', 'c', 'd']), **QUIET)
    assert both.apart and both.quality.clusters == 4
    assert embed(model, cases).frame.patient.tolist() == list('aabbccdd')


def test_a_concept_by_which_patients_differ_is_not_found_by_chance():
    "Features and labels that belong to patients, not to each other: few of many such concepts may look readable."
    from misas.structure.concept import learn_concept
    rng, p = np.random.default_rng(0), []
    for _ in range(60):
        of_patient, patients = rng.standard_normal((20, 6)), np.repeat(np.arange(20), 3)
        features = of_patient[patients] + .1*rng.standard_normal((60, 6))
        values = rng.standard_normal(20)[patients]
        p.append(learn_concept('chance', None, range(60), features, values, patients, folds=5, n_random=39).p)
    assert np.mean(np.array(p) <= .05) <= .05 + 3*(.05*.95/60)**.5


def test_images_are_not_kept():
    model, alive = as_model(plain(), classes=CLASSES), []
    def stream():
        for k in range(12):
            one = pictures(1)[0].replace(image=np.random.default_rng(k).random((1, 32, 32), np.float32))
            alive.append(weakref.ref(one))
            yield one
            del one
    places = embed(model, stream())
    gc.collect()
    assert sum(one() is not None for one in alive) <= 1  # the first, on which the layer was chosen
    assert places.features.dtype == np.float32 and sum(one.nbytes for one in places.thumbnails) <= 12*64*64*3


@pytest.mark.parametrize('name', ['slicewise', 'sliding', 'resized', 'padded', 'kept', 'regions'])
def test_parts_of_wrapped_models(name):
    make, shape = WRAPPED[name]
    model, samples = make(), pictures(3, shape)
    found = parts(model, samples, '1', 2)
    maps = found.on_image(samples[0])
    assert maps.shape == (2, *shape) and maps.min() > -1e-6 and .5 < found.explained <= 1
    table = contributed(found, samples[0], model.foreground[0])
    assert np.isfinite(table.contribution).all() and table.part.tolist() == [0, 1, 'rest']


def test_parts_in_three_dimensions():
    net, samples = meshnet(), pictures(3, (16, 16, 12))
    before, model = trace(net), as_model(net, classes=CLASSES)
    one, two = parts(model, samples, n=2), parts(model, samples, n=2)
    assert np.array_equal(one.directions, two.directions) and trace(net) == before
    assert one.on_image(samples[0]).shape == (2, 16, 16, 12) and trace(net) == before
    one.importance(samples, Target('disc', np.ones((16, 16, 12), bool)))
    assert trace(net) == before


def test_false_positives_where_gradients_differ():
    "Random concepts behind a layer whose gradients differ from image to image: called significant in about 5 %."
    from misas.structure.concept import two_sided
    from misas.structure.directions import coded, dealt_anew, fit_directions
    rng, count = np.random.default_rng(0), 400
    features, gradients = rng.standard_normal((40, 12)), rng.standard_normal((25, 12))
    labels = dealt_anew(np.arange(40) % 2 == 0, np.arange(40), count + 200)
    scores = (gradients @ fit_directions(features, coded(labels), np.arange(40))[0] > 0).mean(0)
    found = []
    for k in range(count):
        others = np.delete(scores, k)
        found.append(two_sided(scores[k], rng.choice(others, 199, replace=False), .5))
    rate = (np.array(found) <= .05).mean()
    assert .01 < rate < .05 + 3*(.05*.95/count)**.5


def test_cells_and_their_classes():
    one = pictures(1, (32, 32))[0]
    pooled = Pooled(as_model(disc_finder(), classes=CLASSES), one)
    heard = pooled.hear(one)
    rows, classes, at = voxelwise(heard, pooled.layer)
    assert np.array_equal(classes, heard.prediction.ravel()) and rows.shape == (1024, 4)
    assert np.allclose(at, np.argwhere(np.ones(one.shape)), atol=1e-3)
