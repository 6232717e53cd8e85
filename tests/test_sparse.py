"A network of dictionaries in the rest of the house, and with input that does not fit."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from misas.all import (
    MLCSC,
    Noise,
    Sample,
    Study,
    Target,
    as_model,
    atoms,
    attribute,
    contributions,
    find_instances,
    impute,
    instance_saliency,
    sensitivity,
    tolerance,
)
from misas.networks.dictionary import Dictionary
from misas.networks.mlcsc import load_mlcsc
from misas.networks.pursuit import PURSUITS
from misas.sparse.training import code_loss, segmentation_loss

QUIET = dict(progress=False)


def scan(seed=0, shape=(37, 42)):
    "Bright discs on two sequences, of a size that is no multiple of any stride."
    rng = np.random.default_rng(seed)
    labels = sum(((np.indices(shape) - np.reshape(c, (2, 1, 1)))**2).sum(0) < 20 for c in ((10, 12), (25, 30), (12, 33)))
    image = np.stack([labels + .1*rng.standard_normal(shape), 1 - labels + .1*rng.standard_normal(shape)])
    return Sample(image.astype(np.float32), labels.astype(np.uint8), spacing=1., classes=('background', 'disc'), name=f's{seed}')


def net(pursuit='mlista', **how):
    torch.manual_seed(0)
    made = MLCSC(2, 2, (6, 6, 6), 3, pursuit=pursuit, iterations=1, sequences=('A', 'B'), classes=('background', 'disc'), **how)
    made.prepare(torch.tensor(scan().image)[None, :, :36, :40])
    with torch.no_grad():
        for weight in made.head: weight.normal_()
    return made


def trained():
    "A network that finds the discs."
    made, optimiser = net(), None
    x = torch.as_tensor(np.stack([scan(k).image for k in range(8)]))[..., :36, :40]
    y = torch.as_tensor(np.stack([scan(k).labels for k in range(8)])).long()[..., :36, :40]
    optimiser = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(40):
        codes = made.codes(x)
        loss = segmentation_loss(made.logits(codes), y) + code_loss(made, x, codes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        made.normalise()
    return as_model(made.eval(), name='net')


@pytest.fixture(scope='module')
def model(): return trained()


def test_all_of_the_house_takes_it(model, tmp_path):
    s = scan(9)
    assert model.classes == ('background', 'disc') and model.label(s)[0].shape == s.shape
    curve = sensitivity(model, s, Noise(), **QUIET)
    assert curve.frame.score.max() > .9
    assert tolerance(model, s, Noise()).evaluations > 0
    assert attribute(model, s, Target('disc'), 'integrated_gradients', n_steps=4, **QUIET).map.any()
    found = find_instances(model.label(s)[0], s)
    assert found.counts['TP'] == 3
    assert instance_saliency(model, s, found.of('TP')[0], n=2, **QUIET).map.any()
    study = Study(tmp_path/'study', model, [Noise((0, .1))])
    study.run([scan(10), scan(11)], **QUIET)
    assert len(study.frame) and not study.frame.score.isna().all()


@pytest.mark.parametrize('pursuit', PURSUITS)
def test_contributions_add_up_with_every_pursuit(pursuit):
    made = as_model(net(pursuit, signed=pursuit == 'lbp').eval(), name='net')
    why = contributions(made, scan(), Target('disc', scan().labels > 0))
    assert abs(why.atoms.contribution.sum() + why.bias - why.logit) < 1e-5*max(1, abs(why.logit))
    parts = why.sequences.contribution.sum()
    assert abs(parts - why.logit) < 1e-4*max(1, abs(why.logit))


def test_asking_changes_nothing(model):
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    image = scan(9).image.copy()
    s = scan(9)
    atoms(model), contributions(model, s, 'disc'), impute(model, s, 'B')
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
    assert np.array_equal(s.image, image)


def test_a_file_is_a_model(model, tmp_path):
    path = model.network.save(tmp_path/'net.safetensors')
    again = as_model(path)
    assert again.name == 'net' and np.array_equal(again.label(scan(9)), model.label(scan(9)))
    torch.save({'a': 1}, tmp_path/'net.pt')
    (tmp_path/'other.safetensors').write_bytes(b'0'*40)
    with pytest.raises(ValueError, match='cannot be read as an MLCSC'): as_model(tmp_path/'other.safetensors')
    from safetensors.torch import save_file
    save_file({'a': torch.zeros(2)}, tmp_path/'weights.safetensors')
    with pytest.raises(ValueError, match='not the settings of an MLCSC'): as_model(tmp_path/'weights.safetensors')
    assert load_mlcsc(path).settings == model.network.settings


@settings(max_examples=25, deadline=None)
@given(ndim=st.integers(1, 3), kernel=st.sampled_from((1, 3, 5)), stride=st.integers(1, 3), channels=st.integers(1, 3),
       count=st.integers(1, 5), seed=st.integers(0, 99))
def test_synthesis_and_analysis_are_adjoint(ndim, kernel, stride, channels, count, seed):
    one = Dictionary(channels, count, kernel, min(stride, kernel), ndim=ndim, seed=seed).double()
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(1, channels, *[6*min(stride, kernel)]*ndim, generator=random, dtype=torch.float64)
    codes = torch.randn(one.analysis(x).shape, generator=random, dtype=torch.float64)
    left, right = (one.synthesis(codes)*x).sum(), (codes*one.analysis(x)).sum()
    assert one.synthesis(codes).shape == x.shape and abs(left - right) <= 1e-10*max(1, abs(left))
    assert one.synthesis(codes).square().sum() <= 1.1*one.gain*codes.square().sum()


def bad():
    made = net()
    x = torch.tensor(scan().image)[None, :, :36, :40]
    nan = x.clone()
    nan[0, 0, 3, 3] = np.nan
    labels = torch.zeros(1, 36, 40, dtype=torch.long)
    return {
        'one sequence': (lambda: made(x[:, :1]), 'of a sequence that is missing pass zeros'),
        'sizes': (lambda: made(x[..., :39]), 'multiples of the strides'),
        'not finite': (lambda: made(nan), 'must hold finite numbers'),
        'none is there': (lambda: made(x, present=[]), 'present must be names of sequences'),
        'unknown sequence': (lambda: made(x, present=['C']), 'present must name some of A, B'),
        'too many classes': (lambda: segmentation_loss(made(x), labels + 2), 'labels must be 0 to 1'),
        'negative labels': (lambda: segmentation_loss(made(x), labels - 1), 'labels must be 0 to 1'),
        'gaps': (lambda: MLCSC(2, 2, (4, 4), 3, (1, 5)), 'stride must not be larger than the kernel'),
        'even': (lambda: MLCSC(2, 2, (4, 4), 4), 'kernel must be odd'),
        'few atoms': (lambda: MLCSC(2, 2, (4, 4), 3, own=2), 'atoms must be more than own x channels'),
        'sparsity': (lambda: code_loss(made, x, made.codes(x), sparsity=(1, 2)), 'one for each of 3 layers'),
    }


@pytest.mark.parametrize('what', bad())
def test_bad_input_is_one_sentence(what):
    ask, said = bad()[what]
    with pytest.raises(ValueError, match=said) as told: ask()
    assert '\n' not in str(told.value)


def test_an_atom_of_length_0_is_named():
    made = net()
    with torch.no_grad(): made.dictionaries[1].weight[4] = 0
    with pytest.raises(ValueError, match='layer 1: atom 4 has length 0'): made.normalise()


def test_exported_to_onnx_it_says_the_same(model, tmp_path):
    axes = {0: 'n', 2: 'h', 3: 'w'}
    x = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.onnx.export(model.network, x, tmp_path/'net.onnx', dynamo=False, input_names=['x'], output_names=['y'],
                      dynamic_axes={'x': axes, 'y': axes})
    other = as_model(tmp_path/'net.onnx', activation='softmax', multiple_of=4)
    assert np.abs(other.predict(scan(9)) - model.predict(scan(9))).max() < 1e-5
