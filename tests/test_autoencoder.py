"Autoencoders: volumes, several channels, overlapping classes, wrapped models, files, and the same numbers twice."
import random

import numpy as np
import pandas as pd
import pytest
import torch

from misas.data.cases import Cases
from misas.data.phantom import ThresholdModel, disc
from misas.data.sample import Sample
from misas.models.adapt import as_model
from misas.models.hold import trace
from misas.structure.autoencoder import autoencoder, load_autoencoder
from misas.structure.latent import interpolate, latent_factors, traverse
from misas.structure.small import resize_matrix, resized


def pictures(count, channels=1):
    rng = np.random.default_rng(3)
    def one(k):
        first = disc((24, 24), radius=5 + 3*rng.random(), background=0, object=50 + 50*rng.random())
        image = np.concatenate([first.image*(1 + c) for c in range(channels)])
        return first.replace(image=image, spacing=1.5, name=f'picture {k}')
    return [one(k) for k in range(count)]


def volumes(count):
    rng = np.random.default_rng(4)
    pattern = np.zeros((16, 12, 10), np.float32)
    pattern[4:12, 3:9, 2:8] = 1
    affine = np.diag([2., 2, 3, 1])
    return [Sample(100 + 20*rng.uniform(1, 3)*pattern[None], affine=affine, name=f'volume {k}') for k in range(count)], pattern


@pytest.fixture(scope='module', params=['ae', 'vae', 'linear'])
def made(request):
    return autoencoder(pictures(14), kind=request.param, latent=2, size=16, epochs=2)


def test_same_call_same_numbers(made):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    cases = pictures(14)
    before = [one.image.copy() for one in cases]
    again = autoencoder(cases, **{**made.settings, 'size': 16})
    assert np.array_equal(again.codes, made.codes) and again.cases.equals(made.cases) and again.curve.equals(made.curve)
    assert random.getstate() == state[0] and np.array_equal(np.random.get_state()[1], state[1])
    assert torch.equal(torch.get_rng_state(), state[2])
    assert all(np.array_equal(one.image, old) for one, old in zip(cases, before))
    if made.settings['kind'] != 'linear':
        other = autoencoder(cases, **{**made.settings, 'size': 16, 'seed': 1, 'epochs': 1})
        assert not np.array_equal(other.codes, made.codes)


def test_file(made, tmp_path):
    path = made.save(tmp_path/'it.safetensors')
    again = load_autoencoder(path)
    one = pictures(1)[0]
    assert np.array_equal(again.encode(one), made.encode(one))
    assert np.array_equal(again.reconstruct(one).image, made.reconstruct(one).image)
    assert again.cases.equals(made.cases) and again.settings == made.settings
    assert again.curve.to_dict('list') == made.curve.to_dict('list')
    assert str(again) == str(made)
    with pytest.raises(ValueError, match='is kept in a .safetensors file'): made.save(tmp_path/'it.pt')
    with pytest.raises(FileNotFoundError): load_autoencoder(tmp_path/'none.safetensors')
    (tmp_path/'broken.safetensors').write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match='cannot be read as an autoencoder'): load_autoencoder(tmp_path/'broken.safetensors')


def test_codes_are_centred_and_sorted(made):
    own = made.codes[(made.cases.part == 'train').to_numpy()]
    assert np.allclose(own.mean(0), 0, atol=1e-5) and (np.diff(made.sd) <= 1e-9).all()
    assert np.allclose(made.axes.T @ made.axes, np.eye(2), atol=1e-9)
    assert np.allclose(made.encode(pictures(14)[3]), made.codes[3], atol=1e-4)
    assert made.components.share.sum() == pytest.approx(1)
    made.plot(made.errors(pictures(2)))


def test_nothing_is_left_on_the_network(made):
    before, one = trace(made.net), pictures(1)[0]
    made.errors([one]), made.error_map(one).plot(), traverse(made, one).plot()
    assert trace(made.net) == before


def test_large_files_of_another_kind_are_refused(tmp_path):
    from safetensors.torch import save_file
    save_file({'a': torch.zeros(2)}, tmp_path/'weights.safetensors')
    with pytest.raises(ValueError, match='not the settings of an autoencoder'): load_autoencoder(tmp_path/'weights.safetensors')


@pytest.mark.parametrize('kind', ['ae', 'vae', 'linear'])
def test_volumes(kind):
    cases, pattern = volumes(8)
    ae = autoencoder(cases, kind=kind, latent=1, size=(16, 8, 8), epochs=1, widths=(4, 8))
    one = cases[0]
    back = ae.reconstruct(one)
    assert back.shape == one.shape and np.array_equal(back.affine, one.affine) and back.spacing == one.spacing
    image = one.image.copy()
    image[0, 13:16, 9:12, 7:10] = 400  # in a corner
    odd = ae.error_map(one.replace(image=image))
    assert all(low <= at for low, at in zip((11, 7, 5), odd.peak[1:]))
    odd.plot()
    model = as_model(ThresholdModel(130.), classes=('background', 'block'))
    way = traverse(ae, one, values=(-1, 1), model=model)
    assert all(image.shape == one.shape for image in way.images) and len(way.predictions) == 3
    way.plot()
    with pytest.raises(ValueError, match='has 2 axes, and size='): ae.encode(disc((16, 16)))
    with pytest.raises(ValueError, match='has 2 numbers, and sample'): autoencoder(cases, latent=1)
    with pytest.raises(ValueError, match='has 2 axes, and size='): autoencoder([*cases, disc((16, 16))], latent=1, size=8)


def test_linear_volume_is_exact():
    cases, pattern = volumes(8)
    ae = autoencoder(cases, kind='linear', latent=1, size=(16, 12, 10))
    assert (ae.cases.error < 1e-6).all()
    way = traverse(ae, cases[0], values=(-1, 1))
    change = way.images[2].image[0] - way.images[0].image[0]
    assert np.abs(change[pattern == 0]).max() < 1e-3 and np.ptp(change[pattern > 0]) < 1e-3 and change.max() > 1


def test_network_of_pictures_slice_by_slice():
    cases, _ = volumes(8)
    ae = autoencoder(cases, kind='linear', latent=1, size=(16, 12, 10))
    flat = as_model(torch.nn.Conv2d(1, 2, 1), classes=('background', 'x'), activation='softmax')
    with torch.no_grad():
        flat.network.weight[:] = torch.tensor([0., 1.]).view(2, 1, 1, 1)
        flat.network.bias[:] = torch.tensor([0., -130.])
    before = trace(flat.network)
    way = traverse(ae, cases[0], model=flat.slicewise())
    deep = traverse(ae, cases[0], model=as_model(ThresholdModel(130.), classes=('background', 'x'), activation='softmax'))
    assert all(np.array_equal(a, b) for a, b in zip(way.predictions, deep.predictions))
    assert trace(flat.network) == before


def test_classes_that_overlap():
    class Two(torch.nn.Module):
        def forward(self, x): return torch.cat([x - 60, x - 30], 1)
    model = as_model(Two(), activation='sigmoid', classes=('core', 'whole'))
    ae = autoencoder(pictures(14), kind='linear', latent=2, size=24)
    def truth(code): return np.stack([ae.decode(code, pictures(1)[0]).image[0] > low for low in (60, 30)])
    way = traverse(ae, pictures(1)[0], model=model, truth=truth)
    assert list(way.frame['class'].unique()) == ['core', 'whole'] and way.predictions[0].shape == (2, 24, 24)
    assert (way.frame.score.dropna() > .999).all()
    assert (way.frame.agreement[way.frame.value == 0].dropna() == 1).all()
    way.plot()
    found = latent_factors(ae, pictures(2), model=model, components=2, truth=truth, detail=False)
    assert found.judged == 'score' and set(found.frame.component) == {0, 1}
    assert found.frame.equals(latent_factors(ae, pictures(2), model=model, components=2, truth=truth, detail=False).frame)


def test_several_channels_and_patients():
    frame = pd.DataFrame(dict(name=[f'picture {k}' for k in range(14)], patient=[k//2 for k in range(14)]))
    samples = {one.name: one for one in pictures(14, channels=2)}
    ae = autoencoder(Cases(frame, lambda row: samples[row['name']]), latent=2, size=16, epochs=1, held_out=.3)
    apart = ae.cases.groupby('patient').part.nunique()
    assert (apart == 1).all() and (ae.cases.part == 'held out').sum() == 4
    one = samples['picture 0']
    assert ae.reconstruct(one).image.shape == (2, 24, 24)
    odd = one.image.copy()
    odd[1, 2:5, 2:5] = 1000
    where = ae.error_map(one.replace(image=odd))
    assert where.peak[0] == 1 and where.map.shape == (2, 24, 24)
    where.plot(channel=1)
    with pytest.raises(ValueError, match='must have 2 channels'): ae.encode(pictures(1)[0])
    with pytest.raises(ValueError, match='must have 2 channels'): autoencoder([one, pictures(2)[1]], latent=1)


def test_range_of_each_image():
    cases = pictures(14)
    ae = autoencoder(cases, kind='linear', latent=2, size=24, intensity='each')
    one = cases[0]
    twice = one.replace(image=2*one.image + 7)
    assert np.allclose(ae.encode(one), ae.encode(twice), atol=1e-4)
    assert np.allclose(ae.reconstruct(twice).image, 2*ae.reconstruct(one).image + 7, atol=1e-2)
    flat = one.replace(image=np.full_like(one.image, 5), name='flat')
    with pytest.raises(ValueError, match="sample 'flat': channel 0 is constant"): ae.encode(flat)
    with pytest.raises(ValueError, match="sample 'flat': channel 0 is constant"): autoencoder([*cases, flat], latent=2, intensity='each')


def test_resizing_there_and_back():
    rng = np.random.default_rng(0)
    for old, new in ((7, 7), (7, 3), (3, 7), (64, 10), (5, 1)):
        matrix = resize_matrix(old, new)
        assert np.allclose(matrix.sum(1), 1) and (matrix >= 0).all() and np.allclose(matrix[::-1, ::-1], matrix)
    image = rng.random((2, 6, 8, 4))
    assert np.array_equal(resized(image, (6, 8, 4)), image)
    assert np.allclose(resized(image[:, ::-1], (3, 5, 9)), resized(image, (3, 5, 9))[:, ::-1])
    assert np.allclose(resized(np.ones((1, 9, 5)), (4, 7)), 1)


def test_interpolation_of_a_network_keeps_its_ends():
    cases = pictures(14)
    ae = autoencoder(cases, kind='vae', latent=2, size=16, epochs=1)
    one, other = (cases[k] for k in np.flatnonzero(ae.cases.part == 'train')[:2])
    way = interpolate(ae, one, other, 4)
    assert np.allclose(way.images[0].image, ae.reconstruct(one).image)
    assert np.allclose(way.codes[-1], ae.encode(other)) and way.values == pytest.approx([0, 1/3, 2/3, 1])
    assert way.frame.change.iloc[0] == 0 and way.frame.seen.iloc[0]
