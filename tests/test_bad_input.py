"Bad input to the core: one sentence that names the argument or file, and nothing is changed by the attempt."
import importlib
import random
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from misas.data.io import as_sample, load
from misas.data.phantom import ThresholdModel, disc
from misas.data.sample import Sample
from misas.data.slices import take_slice
from misas.metrics.masks import confusion, surface_distance
from misas.metrics.metric import METRICS, as_metric
from misas.metrics.scores import score
from misas.models.adapt import as_model
from misas.models.torch import TorchModel
from misas.sweep.pairs import sensitivity_grid
from misas.sweep.sensitivity import sensitivity
from misas.sweep.tolerance import tolerance
from misas.transforms.artifact import BiasField, Ghosting, Gibbs, Motion, Spike, SpikePosition, Undersampling
from misas.transforms.base import Transform, from_function
from misas.transforms.catalogue import CATALOGUE
from misas.transforms.intensity import Blur, Brightness, ChannelScale, Contrast, Gamma, Noise, Rician, WindowWidth
from misas.transforms.spatial import Rotation, Scale, Shear, Translation, Zoom
from misas.transforms.voxels import Crop, Dihedral, Flip, Resize, Resolution

IMAGE, MASK = np.random.default_rng(0).random((1, 6, 5)), np.arange(30).reshape(6, 5) % 2
THRESHOLD, DISC = ThresholdModel(.5), disc((12, 10), radius=3.)
PICTURE = Sample(IMAGE, name='patient 7')


def refused(make, name, *also):
    "`make()` raises one plain sentence in which `name` and all of `also` occur as words."
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as e: make()
    text = str(e.value)
    assert '\n' not in text.strip() and 10 < len(text) < 400, f'not one sentence: {text!r}'
    for word in (name, *also): assert re.search(rf'(?<!\w){re.escape(word)}(?!\w)', text), f'{word!r} is not named in: {text}'


def cases(**named): return pytest.mark.parametrize('make, words', list(named.values()), ids=list(named))
def sweep(model=THRESHOLD, sample=DISC, transform=None, values=(0,), **kw): return sensitivity(model, sample, transform or Rotation(), values, progress=False, **kw)
def two(x): return np.stack([0*x[:, 0], x[:, 0] - .5], 1)


# --- Sample

@cases(
    labels_size=(lambda: Sample(IMAGE, MASK[:5]), ['labels', '(5, 5)']),
    labels_dims=(lambda: Sample(IMAGE, MASK[None, None, None]), ['labels']),
    labels_fractions=(lambda: Sample(IMAGE, MASK*.5), ['labels']),
    labels_nan=(lambda: Sample(IMAGE, MASK*np.nan), ['labels']),
    labels_negative=(lambda: Sample(IMAGE, MASK - 1), ['labels', '-1']),
    labels_text=(lambda: Sample(IMAGE, MASK.astype(str)), ['labels']),
    labels_beyond_int32=(lambda: Sample(IMAGE, MASK.astype(np.int64)*(2**32 + 1)), ['labels']),
    labels_uint32_top=(lambda: Sample(IMAGE, MASK.astype(np.uint32)*np.uint32(2**32 - 1)), ['labels']),
    labels_huge_float=(lambda: Sample(IMAGE, MASK*1e12), ['labels']),
    more_values_than_classes=(lambda: Sample(IMAGE, MASK*3, classes=('background', 'a')), ['labels', '3', 'classes']),
    classes_text=(lambda: Sample(IMAGE, MASK, classes='liver'), ['classes']),
    classes_twice=(lambda: Sample(IMAGE, MASK, classes=('background', 'a', 'a')), ['classes']),
    image_nan=(lambda: Sample(IMAGE*np.nan), ['image']),
    image_infinite=(lambda: Sample(IMAGE*np.inf), ['image']),
    image_complex=(lambda: Sample(IMAGE*1j), ['image']),
    image_text=(lambda: Sample(IMAGE.astype(str)), ['image']),
    image_none=(lambda: Sample(None), ['image']),
    image_empty=(lambda: Sample(IMAGE[:, :0]), ['image']),
    image_one_axis=(lambda: Sample(IMAGE[0, 0]), ['image']),
    image_five_axes=(lambda: Sample(IMAGE[None, None]), ['image']),
    image_channels_last=(lambda: Sample(np.zeros((64, 48, 3))), ['image']),
    volume_without_channel=(lambda: Sample(np.zeros((32, 32, 20))), ['image']),
    spacing_zero=(lambda: Sample(IMAGE, spacing=(1, 0)), ['spacing']),
    spacing_nan=(lambda: Sample(IMAGE, spacing=np.nan), ['spacing']),
    spacing_one_too_many=(lambda: Sample(IMAGE, spacing=(1, 1, 1, 1)), ['spacing']),
    spacing_against_affine=(lambda: Sample(np.zeros((1, 4, 4, 4)), spacing=2., affine=np.eye(4)), ['spacing', 'affine']),
    affine_shape=(lambda: Sample(np.zeros((1, 4, 4, 4)), affine=np.eye(3)), ['affine']),
    affine_nan=(lambda: Sample(np.zeros((1, 4, 4, 4)), affine=np.eye(4)*np.nan), ['affine']),
    valid_size=(lambda: Sample(IMAGE, valid=MASK[:3] > 0), ['valid']),
    valid_fractions=(lambda: Sample(IMAGE, valid=MASK*.5), ['valid']),
    named_sample=(lambda: Sample(IMAGE, MASK*3, classes=('background', 'a'), name='patient 7'), ['patient 7']),
    slice_of_a_picture=(lambda: take_slice(Sample(IMAGE)), ['sample']),
    slice_outside=(lambda: take_slice(disc((4, 4, 4), radius=1.), 9), ['slice', '9']),
    as_sample_of_nothing=(lambda: as_sample(None), ['NoneType']),
    missing_file=(lambda: load('no/such/file.nii.gz'), ['file.nii.gz']),
)
def test_sample(make, words): refused(make, *words)


# --- metrics

@cases(
    sizes=(lambda: score(MASK, MASK[:3], n_classes=2), ['prediction', 'labels']),
    valid_size=(lambda: score(MASK, MASK, n_classes=2, valid=MASK[:3]), ['valid']),
    prediction_too_large=(lambda: score(MASK*2, MASK, n_classes=2), ['prediction', '2']),
    labels_too_large=(lambda: score(MASK, MASK*2, n_classes=2), ['labels', '2']),
    prediction_probabilities=(lambda: score(IMAGE[0], MASK, n_classes=2), ['prediction']),
    labels_negative=(lambda: score(MASK, -MASK, n_classes=2), ['labels']),
    unknown_metric=(lambda: score(MASK, MASK, 'disc', n_classes=2), ['metrics', 'disc', 'dice']),
    unknown_metric_in_list=(lambda: score(MASK, MASK, ['dice', 'DICE'], n_classes=2), ['metrics', 'DICE']),
    no_metrics=(lambda: score(MASK, MASK, [], n_classes=2), ['metrics']),
    metric_number=(lambda: score(MASK, MASK, 3, n_classes=2), ['metrics']),
    metric_none=(lambda: score(MASK, MASK, None, n_classes=2), ['metrics']),
    metric_not_a_number=(lambda: score(MASK, MASK, lambda p, t: p, n_classes=2), ['<lambda>']),
    one_class=(lambda: score(MASK, MASK, n_classes=1), ['n_classes']),
    n_classes_fraction=(lambda: score(MASK, MASK, n_classes=2.5), ['n_classes']),
    n_classes_missing=(lambda: score(MASK, MASK), ['n_classes']),
    confusion_sizes=(lambda: confusion(MASK, MASK.T, 2), ['prediction', 'labels']),
    metric_in_a_list_of_a_list=(lambda: score(MASK, MASK, [['dice']], n_classes=2), ['metrics', 'dice']),
    unknown_distance=(lambda: score(MASK, MASK, 'hd95', n_classes=2, spacing=1), ['metrics', 'hd95', 'hausdorff95']),
    spacing_missing=(lambda: score(MASK, MASK, ('dice', 'hausdorff95'), n_classes=2), ['hausdorff95', 'mm', 'spacing']),
    spacing_missing_for_a_volume=(lambda: score(MASK, MASK, 'volume_difference', n_classes=2), ['volume_difference', 'spacing']),
    spacing_zero=(lambda: score(MASK, MASK, 'assd', n_classes=2, spacing=0), ['spacing', '0.0']),
    spacing_zero_for_dice=(lambda: score(MASK, MASK, n_classes=2, spacing=(1, 0)), ['spacing', '0.0']),
    spacing_negative=(lambda: score(MASK, MASK, 'volume', n_classes=2, spacing=(1, -2)), ['spacing', '-2.0']),
    spacing_nan=(lambda: score(MASK, MASK, 'assd', n_classes=2, spacing=np.nan), ['spacing', 'nan']),
    spacing_infinite=(lambda: score(MASK, MASK, 'assd', n_classes=2, spacing=np.inf), ['spacing', 'inf']),
    spacing_one_too_many=(lambda: score(MASK, MASK, 'assd', n_classes=2, spacing=(1, 1, 1)), ['spacing', '2']),
    spacing_one_of_two=(lambda: score(MASK, MASK, 'assd', n_classes=2, spacing=[1]), ['spacing', '2']),
    spacing_text=(lambda: score(MASK, MASK, 'assd', n_classes=2, spacing='1mm'), ['spacing', '1mm']),
    spacing_ragged=(lambda: score(MASK, MASK, 'assd', n_classes=2, spacing=(1, (2, 3))), ['spacing']),
    distance_in_1d=(lambda: score(MASK[0], MASK[0], 'assd', n_classes=2, spacing=1), ['assd', '1']),
    volume_in_4d=(lambda: score(MASK[None, None], MASK[None, None], 'volume', n_classes=2, spacing=1), ['volume', '4']),
    surface_of_labels=(lambda: surface_distance(MASK, MASK*2, 1), ['truth', '2']),
    surface_sizes=(lambda: surface_distance(MASK, MASK.T, 1), ['prediction', 'truth']),
    surface_percentile=(lambda: surface_distance(MASK, MASK, 1, 0), ['percentile', '0']),
    bad_of_a_volume=(lambda: METRICS['volume'].bad(3), ['volume', 'volume_difference']),
    an_unknown_metric=(lambda: as_metric('hd95'), ['hd95', 'hausdorff95']),
)
def test_metrics(make, words): refused(make, *words)


# --- transforms

OUTSIDE = [(Zoom, 0), (Zoom, -1), (Resize, 0), (Resize, -2), (Flip, 4), (Flip, .5), (Flip, -1), (Dihedral, 8), (Dihedral, 1.5), (Crop, .5),
           (Crop, -.1), (Brightness, -1), (Contrast, -.1), (Noise, -1), (Rician, -.1), (Blur, -2), (Gamma, 0), (WindowWidth, 0), (Scale, 0), (Shear, 90),
           (Resolution, .5), (ChannelScale, -1),
           (BiasField, 9), (Spike, -.1), (SpikePosition, 1.1), (SpikePosition, -.1), (Ghosting, 1.01), (Ghosting, -.1), (Gibbs, -.1), (Gibbs, 1.1),
           (Undersampling, -.1), (Undersampling, 1.1), (Motion, -1)]


@pytest.mark.parametrize('kind, value', OUTSIDE, ids=[f'{k.__name__}_{v}' for k, v in OUTSIDE])
def test_value_outside_the_domain(kind, value):
    refused(lambda: kind()(Sample(IMAGE), value), 'value', str(value), kind().name)
    if (kind, value) != (Flip, 4):  # right in 3D
        refused(lambda: kind([value]), 'value', kind.name)
    refused(lambda: sweep(transform=kind(), values=[value]), 'value', kind().name)


@pytest.mark.parametrize('value', [np.nan, np.inf, None, 'a', [1], (1, 2), 1j], ids=str)
@pytest.mark.parametrize('kind', CATALOGUE, ids=lambda k: k.__name__)
def test_value_that_is_no_number(kind, value): refused(lambda: kind()(Sample(IMAGE), value), 'value', kind().name)


@cases(
    values_empty=(lambda: Rotation([]), ['values']),
    values_text=(lambda: sweep(values='abc'), ['values']),
    values_list_of_text=(lambda: sweep(values=['a']), ['value']),
    sweep_values_empty=(lambda: sweep(values=[]), ['values']),
    order=(lambda: Rotation(order=9)(Sample(IMAGE), 3), ['order']),
    order_text=(lambda: Rotation(order='linear')(Sample(IMAGE), 3), ['order']),
    fill=(lambda: Rotation(fill='mean')(Sample(IMAGE), 3), ['fill']),
    crop_fill=(lambda: Crop(fill='mean')(Sample(IMAGE), .2), ['fill']),
    axis=(lambda: Rotation(axis=3)(disc((4, 4, 4), radius=1.), 3), ['axis']),
    seed=(lambda: Noise(seed=-1)(Sample(IMAGE), .1), ['seed']),
    not_a_sample=(lambda: Rotation()(IMAGE, 3), ['sample']),
    own_not_callable=(lambda: from_function(3, 'x', [0, 1], 0), ['f']),
    own_values_none=(lambda: from_function(lambda i, v: i, 'x', None, 0), ['value']),
    own_identity_none=(lambda: from_function(lambda i, v: i, 'x', [1], None), ['identity']),
    own_random=(lambda: from_function(lambda i, v: i + np.random.rand(), 'shaky', [0, 1], 0)(Sample(IMAGE), 1), ['shaky', 'seed']),
    own_nan=(lambda: from_function(lambda i, v: i*np.nan, 'bad', [0, 1], 0)(Sample(IMAGE), 1), ['bad', 'NaN']),
    own_shape=(lambda: from_function(lambda i, v: i[:, 1:], 'cut', [0, 1], 0)(Sample(IMAGE), 1), ['cut', 'spatial']),
    own_channels=(lambda: from_function(lambda i, v: i[:0], 'none', [0, 1], 0)(Sample(IMAGE), 1), ['none']),
    own_nothing=(lambda: from_function(lambda i, v: None, 'forgot', [0, 1], 0)(Sample(IMAGE), 1), ['forgot']),
    own_identity_changes=(lambda: sweep(transform=from_function(lambda i, v: i*v, 'factor', [1, 2], 0), values=[1]), ['identity']),
    axis_nowhere=(lambda: Rotation(axis=(0, 0, 0)), ['axis']),
    axis_for_volumes=(lambda: Rotation(axis=(0, 0, 1))(PICTURE, 3), ['axis', 'patient 7', '2D']),
    direction=(lambda: Translation(direction='up'), ['direction', 'up']),
    across=(lambda: Shear(direction='vertical', across='vertical'), ['across', 'vertical']),
    through_plane_of_a_picture=(lambda: Translation(direction='through-plane')(PICTURE, 3), ['through-plane', 'patient 7', '2D', '3D']),
    thick_slices_of_a_picture=(lambda: Resolution(direction='through-plane')(PICTURE, 3), ['through-plane', 'patient 7', '2D', '3D']),
    flip_of_one_channel=(lambda: Dihedral(channels=0)(PICTURE, 2), ['dihedral', 'grid', 'channels']),
    no_channel=(lambda: Noise(channels=[])(PICTURE, .1), ['channels']),
    channel_text=(lambda: Noise(channels='T1')(PICTURE, .1), ['channels', 'T1']),
    channel_outside=(lambda: ChannelScale(channels=3)(PICTURE, .1), ['channels', '3', 'patient 7']),
    stack_with_a_number=(lambda: Rotation() + 3, ['+']),
    stack_of_two_swept=(lambda: sweep(transform=Rotation() + Noise()), ['transform', '2']),
    stack_of_none_swept=(lambda: sweep(transform=Rotation().at(3)), ['transform', '0']),
    stack_with_one_number=(lambda: (Rotation() + Noise())(PICTURE, 3), ['2']),
    at_outside=(lambda: Noise().at(-1), ['value', 'noise']),
    json_of_nothing=(lambda: Transform.from_json('{}'), ['transform', 'None']),
    json_of_unknown=(lambda: Transform.from_json('{"transform": "Wobble"}'), ['Wobble']),
    json_argument=(lambda: Transform.from_json('{"transform": "Noise", "strength": 3}'), ['Noise', 'strength']),
    json_lambda=(lambda: from_function(lambda i, v: i, 'nameless', [0, 1], 0).to_json(), ['nameless', 'def']),
    own_no_way_back=(lambda: sweep(transform=from_function(lambda i, v: i, 'there', [0, 1], 0, spatial=True), values=[1], space='original'), ['inverse']),
)
def test_transforms(make, words): refused(make, *words)


@cases(
    bias_order=(lambda: BiasField(order=0), ['order', '0']),
    bias_order_text=(lambda: BiasField(order='cubic'), ['order', 'cubic']),
    bias_seed=(lambda: BiasField(seed=-1), ['seed']),
    spike_outside=(lambda: Spike(position=(.1, .6)), ['position', '0.6']),
    spike_in_the_centre=(lambda: Spike(position=(0, 0)), ['position']),
    spike_one_number=(lambda: Spike(position=.1), ['position', '0.1']),
    spike_text=(lambda: Spike(position='edge'), ['position', 'edge']),
    spike_nan=(lambda: Spike(position=(np.nan, .1)), ['position']),
    spike_for_volumes=(lambda: Spike(position=(.1, .1, .1))(PICTURE, .1), ['position', 'patient 7', '2D']),
    direction_nowhere=(lambda: SpikePosition(direction=(0, 0, 0)), ['direction']),
    direction_for_volumes=(lambda: SpikePosition(direction=(1, 0, 0))(PICTURE, .1), ['direction', 'patient 7', '2D']),
    amplitude=(lambda: SpikePosition(amplitude=-1), ['amplitude', '-1']),
    n_ghosts=(lambda: Ghosting(n_ghosts=1), ['n_ghosts', '1']),
    ghosts_centre=(lambda: Ghosting(centre=2), ['centre', '2']),
    ghosts_axis=(lambda: Ghosting(axis=2)(PICTURE, .1), ['axis', '2', 'patient 7', '2D']),
    ghosts_axis_text=(lambda: Ghosting(axis='rows'), ['axis', 'rows']),
    motion_axis=(lambda: Motion(axis=-3)(PICTURE, 1), ['axis', '-3', 'patient 7', '2D']),
    n_moves=(lambda: Motion(n_moves=0), ['n_moves', '0']),
    degrees_per_mm=(lambda: Motion(degrees_per_mm=np.nan), ['degrees_per_mm', 'nan']),
    motion_order=(lambda: Motion(order=6), ['order', '6']),
    motion_seed=(lambda: Motion(seed=.5), ['seed', '0.5']),
    gibbs_axes=(lambda: Gibbs(axes=1), ['axes', '1']),
    gibbs_no_axes=(lambda: Gibbs(axes=()), ['axes']),
    gibbs_axes_for_volumes=(lambda: Gibbs(axes=(0, 2))(PICTURE, .1), ['axes', '2', 'patient 7', '2D']),
    pattern=(lambda: Undersampling(pattern='spiral'), ['pattern', 'spiral']),
    lines_axis=(lambda: Undersampling(axis=5), ['axis', '5']),
    lines_centre=(lambda: Undersampling(centre=-.1), ['centre', '-0.1']),
    lines_seed=(lambda: Undersampling(seed=None), ['seed', 'None']),
    no_such_channel=(lambda: Ghosting(channels=1)(PICTURE, .1), ['channels', 'patient 7']),
)
def test_artefacts(make, words): refused(make, *words)


def test_without_torchio_only_the_bias_field_is_missing(monkeypatch):
    for name in ('torchio', 'torchio.transforms'): monkeypatch.setitem(sys.modules, name, None)
    for kind in (Spike, SpikePosition, Ghosting, Motion, Gibbs, Undersampling): assert kind()(PICTURE, .5).shape == PICTURE.shape
    with pytest.raises(ImportError, match=r'^BiasField needs torchio: pip install "misas\[mri\]"$'): BiasField(seed=12345)(PICTURE, .5)


def test_a_torchio_that_works_in_another_way(monkeypatch):
    import torchio
    image = torchio.ScalarImage(tensor=np.zeros((1, 4, 5, 6), np.float32))
    monkeypatch.setattr(torchio, '__version__', '2.0.0a4')
    for ask in (lambda: BiasField(seed=123456)(PICTURE, .5), lambda: as_sample(image)):
        with pytest.raises(ImportError, match=r'needs a torchio before 2, not 2\.0\.0a4: pip install "torchio<2"$'): ask()


# --- models

@cases(
    number=(lambda: as_model(3), ['obj']),
    none=(lambda: as_model(None), ['obj']),
    a_class=(lambda: as_model(nn.Conv2d), ['obj']),
    activation=(lambda: as_model(two, activation='relu'), ['activation', 'relu']),
    batch_zero=(lambda: as_model(two, batch_size=0), ['batch_size']),
    batch_text=(lambda: as_model(two, batch_size='x'), ['batch_size']),
    size_and_multiple=(lambda: as_model(two, size=4, multiple_of=2), ['size', 'multiple_of']),
    size_text=(lambda: as_model(two, size='a').label(IMAGE[None]), ['size']),
    size_zero=(lambda: as_model(two, size=0).label(IMAGE[None]), ['size']),
    size_three=(lambda: as_model(two, size=(4, 4, 4)).label(IMAGE[None]), ['size']),
    multiple_fraction=(lambda: as_model(two, multiple_of=2.5).label(IMAGE[None]), ['multiple_of']),
    preprocess=(lambda: as_model(two, preprocess=3), ['preprocess']),
    classes_text=(lambda: as_model(two, classes='ab'), ['classes']),
    classes_twice=(lambda: as_model(two, classes=('background', 'a', 'a')), ['classes']),
    device=(lambda: as_model(nn.Conv2d(1, 2, 1), device='nonsense'), ['device']),
    device_of_a_function=(lambda: as_model(two, device='cpu'), ['device']),
    options_for_a_model=(lambda: as_model(as_model(two), size=4), ['obj']),
    keep_unknown=(lambda: as_model(two, classes=('background', 'a')).keep('b'), ['b', 'a']),
    keep_nothing=(lambda: as_model(two, classes=('background', 'a')).keep(), ['keep']),
    keep_twice=(lambda: as_model(two, classes=('background', 'a')).keep('a', 'a'), ['a']),
    keep_unnamed=(lambda: as_model(two).keep('b'), ['classes']),
    threshold_zero=(lambda: as_model(two, threshold=0), ['threshold', '0']),
    threshold_text=(lambda: as_model(two, threshold='half'), ['threshold', 'half']),
    threshold_true=(lambda: as_model(two, threshold=True), ['threshold']),
    threshold_nothing=(lambda: as_model(two, threshold=[]), ['threshold']),
    threshold_unknown=(lambda: as_model(two, activation='sigmoid', classes=('a', 'b'), threshold=dict(c=.5)).masks(IMAGE[None]), ['threshold', 'c', 'a']),
    threshold_three=(lambda: as_model(two, activation='sigmoid', threshold=(.5, .5, .5)).masks(IMAGE[None]), ['threshold', '3']),
    threshold_of_labels=(lambda: as_model(lambda x: np.concatenate([x, -x, 0*x], 1), activation='softmax', threshold=.3).label(IMAGE[None]), ['threshold', '3']),
    output_number=(lambda: as_model(two, output=1.5), ['output', '1.5']),
    output_true=(lambda: as_model(two, output=True), ['output', 'True']),
    output_of_one=(lambda: as_model(two, output=0).label(IMAGE[None]), ['output', '0']),
    output_unknown=(lambda: as_model(lambda x: {'a': two(x), 'b': two(x)}, output='c').label(IMAGE[None]), ['output', 'a', 'b']),
    output_fails=(lambda: as_model(lambda x: {'a': two(x), 'b': two(x)}, output=lambda raw: raw['c']).label(IMAGE[None]), ['output', 'c']),
    outputs=(lambda: as_model(lambda x: [two(x)]*2, name='net 5').label(IMAGE[None]), ['net 5', 'output']),
    resize_output_text=(lambda: as_model(two, resize_output='yes'), ['resize_output', 'yes']),
    resize_unsaid=(lambda: as_model(lambda x: two(x)[..., ::2]).label(IMAGE[None]), ['resize_output']),
    resize_label_maps=(lambda: as_model(lambda x: (x[:, 0, ::2] > .5).astype(int), classes=('a', 'b'), resize_output=True).label(IMAGE[None]), ['label', 'resized']),
    overlapping_background=(lambda: as_model(two, activation='sigmoid', classes=('background', 'a')).masks(IMAGE[None]), ['background', 'sigmoid']),
    overlapping_channels=(lambda: as_model(two, activation='sigmoid', classes=('a', 'b', 'c')).masks(IMAGE[None]), ['2', '3', 'classes']),
    masks_of_logits=(lambda: as_model(lambda x: two(x)*9, activation='masks').masks(IMAGE[None]), ['activation', 'sigmoid']),
    masks_of_probabilities=(lambda: as_model(lambda x: torch.as_tensor(two(x)).sigmoid(), activation='sigmoid').masks(IMAGE[None]), ['activation', 'masks']),
    channel_unknown=(lambda: as_model(two, activation='sigmoid', classes=('a', 'b')).channel('c'), ['c', 'a']),
    channel_unnamed=(lambda: as_model(two, activation='sigmoid').channel('c'), ['classes']),
    regions_none=(lambda: as_model(two).regions(), ['regions']),
    regions_unknown=(lambda: as_model(two, classes=('background', 'a')).regions(c='b'), ['region', 'b', 'a']),
    regions_too_large=(lambda: as_model(two, classes=('background', 'a')).regions(c=2), ['region', '2', '1']),
    regions_background=(lambda: as_model(two).regions(c=0), ['region', '0']),
    regions_of_masks=(lambda: as_model(two, activation='masks').regions(c=1), ['regions', 'overlap']),
    labels_where_classes_overlap=(lambda: as_model(two, activation='sigmoid').label(IMAGE[None]), ['masks', 'channel']),
    window_zero=(lambda: as_model(two, window=0), ['window']),
    window_text=(lambda: as_model(two, window='a'), ['window']),
    window_axes=(lambda: as_model(two, window=(4, 4, 4)).label(IMAGE[None]), ['window']),
    window_and_size=(lambda: as_model(two, window=4, size=4), ['window', 'size']),
    window_multiple=(lambda: as_model(two, window=6, multiple_of=4), ['window', 'multiple_of']),
    window_of_label_maps=(lambda: as_model(lambda x: x[:, 0] > .5, window=4, name='net 5').label(IMAGE[None]), ['net 5', 'label']),
    overlap_one=(lambda: as_model(two, window=4, overlap=1), ['overlap']),
    overlap_text=(lambda: as_model(two, window=4, overlap='half'), ['overlap']),
    overlap_alone=(lambda: as_model(two, overlap=.5), ['overlap', 'window']),
    volume_for_a_2d_network=(lambda: as_model(nn.Conv2d(1, 2, 1)).label(np.zeros((1, 1, 4, 5, 6))), ['slicewise']),
    slicewise_of_a_picture=(lambda: as_model(two).slicewise().label(IMAGE[None]), ['volume', '(1, 6, 5)']),
    slicewise_axis=(lambda: as_model(two).slicewise(3), ['axis', '3']),
    oriented_order=(lambda: as_model(two).oriented('RAX'), ['order', 'RAX']),
    oriented_spacing=(lambda: as_model(two).oriented('RAS', -1), ['spacing', '-1']),
    oriented_without_affine=(lambda: as_model(two).oriented('RAS').label(np.zeros((1, 1, 4, 5, 6))), ['affine']),
    missing_onnx=(lambda: as_model('no_such.onnx'), ['no_such.onnx']),
    missing_pkl=(lambda: as_model('no_such.pkl', trusted=True), ['no_such.pkl']),
    missing_pt=(lambda: as_model('no_such.pt'), ['no_such.pt']),
    x_one_axis=(lambda: as_model(two).label(np.zeros(3)), ['x']),
    x_text=(lambda: as_model(two).label('picture.png'), ['x']),
    x_no_samples=(lambda: as_model(two).label([]), ['x']),
    x_empty_batch=(lambda: as_model(two).label(np.zeros((0, 1, 4, 4))), ['x']),
    x_sizes=(lambda: as_model(two).label([Sample(IMAGE), Sample(IMAGE[:, 1:])]), ['samples']),
    no_gradients=(lambda: as_model(two).logits(torch.zeros(1, 1, 4, 4, requires_grad=True)), ['two']),
    logits_of_labels=(lambda: as_model(lambda x: (x[:, 0] > .5).astype(int), classes=('background', 'a')).logits(IMAGE[None]), ['logits']),
)
def test_models(make, words): refused(make, *words)


def test_a_file_that_may_run_code_needs_trust(tmp_path):
    for suffix in ('.pkl', '.pt', '.pth', '.ts'):
        path = tmp_path/f'net{suffix}'
        path.write_bytes(b'not a model')
        refused(lambda: as_model(path), path.name, 'trusted')
        refused(lambda: as_model(path, trusted=True), path.name)
    torch.save(nn.Conv2d(1, 2, 1).state_dict(), tmp_path/'weights.pth')
    refused(lambda: as_model(tmp_path/'weights.pth', trusted=True), 'weights.pth')
    for name in ('net.onnx', 'net.h5'):
        (tmp_path/name).write_bytes(b'not a model')
        refused(lambda: as_model(tmp_path/name), name)


BAD_OUTPUTS = dict(  # what a model may wrongly return for (1, 1, 12, 10), and the words that must be in the error
    nan=(lambda x: two(x)*np.nan, ['NaN']),
    one_nan=(lambda x: np.where(np.arange(120).reshape(12, 10) == 7, np.nan, two(x)), ['NaN']),
    infinite=(lambda x: two(x)/0., ['infinite']),
    smaller=(lambda x: two(x)[..., 1:], ['shape', '(1, 2, 12, 9)']),
    swapped=(lambda x: two(x).swapaxes(2, 3), ['shape', '(1, 2, 10, 12)']),
    no_batch=(lambda x: two(x)[0], ['shape']),
    five_axes=(lambda x: two(x)[None, None], ['shape']),
    number=(lambda x: 3., ['shape']),
    nothing=(lambda x: None, ['NoneType']),
    text=(lambda x: 'hello', ['str']),
    raises=(lambda x: 1/0, ['division by zero']),
    whole_number_one_hot=(lambda x: (two(x) > 0).astype(int), ['class axis']),
    overlapping=(lambda x: np.concatenate([x*0 + .9, x*0 + .8, x*0 + .1], 1), ['activation']),
)


@pytest.mark.parametrize('name', BAD_OUTPUTS)
def test_bad_output_of_a_model(name):
    f, words = BAD_OUTPUTS[name]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        refused(lambda: as_model(f, name='net 5').label(DISC), 'net 5', *words)
        refused(lambda: sweep(as_model(f, name='net 5')), 'net 5', *words)


@cases(
    too_few_probabilities=(lambda: as_model(two, classes=('background', 'a', 'b')).label(DISC), ['2', 'classes']),
    too_large_label=(lambda: as_model(lambda x: (x[:, 0] > .5).astype(int)*2, classes=('background', 'a')).label(DISC), ['label', '2', 'classes']),
    labels_without_classes=(lambda: as_model(lambda x: (x[:, 0] > .5).astype(int)).label(DISC), ['classes']),
    labels_with_fractions=(lambda: as_model(lambda x: x[:, 0]*1.5, activation='labels', classes='background a b'.split()).label(DISC), ['activation']),
    not_probabilities=(lambda: as_model(lambda x: two(x)*9, activation='none').label(DISC), ['activation']),
    label_of_masks=(lambda: as_model(two, activation='sigmoid', name='net 5').label(DISC), ['net 5', 'masks', 'channel']),
    channels=(lambda: as_model(nn.Conv2d(3, 2, 1)).label(DISC), ['Conv2d', '3', 'channels']),
    volume_for_2d=(lambda: as_model(nn.Conv2d(1, 2, 1)).label(disc((4, 4, 4), radius=1.)), ['Conv2d', '(1, 4, 4, 4)']),
    preprocess_size=(lambda: as_model(two, preprocess=lambda x: x[:, 1:]).label(DISC), ['preprocess']),
    preprocess_nothing=(lambda: as_model(two, preprocess=lambda x: None).label(DISC), ['preprocess']),
    preprocess_undo_size=(lambda: as_model(two, preprocess=lambda x: (x[:, 1:], lambda y, empty: y)).label(DISC), ['undo', 'preprocess']),
    preprocess_undo_arguments=(lambda: as_model(two, preprocess=lambda x: (x, lambda y: y)).label(DISC), ['undo', 'preprocess']),
)
def test_model_and_its_options_disagree(make, words): refused(make, *words)


def test_an_output_that_contradicts_the_first_is_an_error():
    "A float label map is recognised by its values; later fractions must not be cut off."
    m = as_model(lambda x: x[:, 0]*2, classes=('background', 'a', 'b'))
    assert m.label(np.ones((1, 1, 2, 2))).max() == 2
    refused(lambda: m.label(np.full((1, 1, 2, 2), .9)), 'activation')


# --- sensitivity

@cases(
    model=(lambda: sweep(model=3), ['obj']),
    sample=(lambda: sweep(sample=3), ['int']),
    transform_text=(lambda: sweep(transform='rotation'), ['transform']),
    transform_function=(lambda: sweep(transform=lambda i, v: i), ['transform']),
    transform_class=(lambda: sweep(transform=Sample), ['transform']),
    value=(lambda: sweep(values=[np.nan]), ['value', 'rotation']),
    metric=(lambda: sweep(metrics=('dise',)), ['metrics', 'dise']),
    reference=(lambda: sweep(reference='truth'), ['reference', 'truth']),
    space=(lambda: sweep(space='model'), ['space', 'model']),
    unlabelled=(lambda: sweep(sample=DISC.replace(labels=None, name='patient 7')), ['patient 7', 'labels', 'reference']),
    more_values_than_classes=(lambda: sweep(sample=DISC.replace(labels=DISC.labels*5, classes=None, name='patient 7')), ['patient 7', 'labels', '5']),
    other_classes=(lambda: sweep(as_model(two, classes=('background', 'liver'))), ['liver', 'disc']),
    channels=(lambda: sweep(nn.Conv2d(2, 2, 1)), ['Conv2d', 'channels']),
    drop=(lambda: sweep().tolerance(drop=0), ['drop']),
    drop_text=(lambda: sweep().tolerance(drop='x'), ['drop']),
    tolerance_metric=(lambda: sweep().tolerance(metric='iou'), ['metric', 'iou']),
    plot_metric=(lambda: sweep().plot(metrics='iou'), ['metrics', 'iou']),
    gif_suffix=(lambda: sweep().gif('film.mp4'), ['film.mp4']),
    gif_folder=(lambda: sweep().gif('no_such_folder/film.gif'), ['no_such_folder/film.gif']),
)
def test_sensitivity(make, words): refused(make, *words)


MM = DISC.replace(spacing=2.)


@cases(
    grid_of_equals=(lambda: sensitivity_grid(THRESHOLD, DISC, (Noise(), Noise([0, .2]))), ['transforms', 'noise']),
    grid_of_one=(lambda: sensitivity_grid(THRESHOLD, DISC, (Noise(),)), ['transforms', 'two']),
    grid_of_three=(lambda: sensitivity_grid(THRESHOLD, DISC, Noise() + Zoom() + Rotation()), ['transforms', 'two']),
    grid_values=(lambda: sensitivity_grid(THRESHOLD, DISC, (Noise(), Zoom()), [1, 2]), ['values', 'noise', 'zoom']),
    grid_value_outside=(lambda: sensitivity_grid(THRESHOLD, DISC, (Noise(), Zoom()), ([-1], None)), ['value', 'noise']),
    grid_of_text=(lambda: sensitivity_grid(THRESHOLD, DISC, 'noise'), ['transforms']),
    tolerance_of_cases=(lambda: tolerance(THRESHOLD, DISC, Flip()), ['flip', 'sensitivity']),
    tolerance_of_nothing=(lambda: tolerance(THRESHOLD, DISC, Noise([0])), ['noise', 'identity']),
    tolerance_drop=(lambda: tolerance(THRESHOLD, DISC, Noise(), drop=0), ['drop', '0']),
    tolerance_resolution=(lambda: tolerance(THRESHOLD, DISC, Noise(), resolution=-1), ['resolution', '-1']),
    tolerance_steps=(lambda: tolerance(THRESHOLD, DISC, Noise(), resolution=5), ['resolution', '5']),
    tolerance_metrics=(lambda: tolerance(THRESHOLD, DISC, Noise(), metric=['dice', 'iou']), ['metric', 'dice', 'iou']),
    tolerance_volume=(lambda: tolerance(THRESHOLD, MM, Noise(), metric='volume'), ['volume', 'volume_difference']),
    mm_without_spacing=(lambda: sweep(sample=Sample(IMAGE, MASK, name='patient 7'), metrics='hausdorff95'), ['hausdorff95', 'spacing', 'patient 7']),
    volume_without_spacing=(lambda: tolerance(THRESHOLD, Sample(IMAGE, MASK), Noise(), metric='volume_difference'), ['volume_difference', 'spacing']),
)
def test_limits_and_maps(make, words): refused(make, *words)


def test_a_2d_transform_refuses_a_volume():
    class Flat(Transform):
        name, dims, values = 'flat', (2,), (0., 1.)
        def apply(self, sample, value): return sample
    refused(lambda: sweep(sample=disc((4, 4, 4), radius=1.).replace(name='patient 7'), transform=Flat(), values=[1]), 'flat', 'patient 7')


# --- nothing is changed, whatever happens

class Moody(nn.Module):
    "Has parts in different modes, and raises from a chosen call on."
    def __init__(self, fails_at=None):
        super().__init__()
        self.conv, self.norm, self.drop, self.fails_at = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Dropout(.5), fails_at
        Moody.n = 0  # of its own it would be what it was after each call
        self.train()
        self.norm.eval()
        self.conv.weight.requires_grad_(False)

    def forward(self, x):
        Moody.n += 1
        if self.fails_at and Moody.n >= self.fails_at: raise RuntimeError('out of luck')
        return self.drop(self.norm(self.conv(x.mul_(1.))))


def state(net): return [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}, [p.requires_grad for p in net.parameters()]
def equal(a, b): return a[0] == b[0] and a[2] == b[2] and all(torch.equal(a[1][k], b[1][k]) for k in a[1])
def chance(): return np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate()


@pytest.mark.parametrize('fails_at', [None, 1, 3], ids=['works', 'fails first', 'fails in the middle'])
@pytest.mark.parametrize('transform', [Rotation, Noise, Resize, Brightness], ids=lambda t: t.__name__)
def test_a_sweep_leaves_everything_as_it_was(transform, fails_at):
    net, s = Moody(fails_at), DISC.replace(valid=DISC.labels < 2)
    before, luck, arrays = state(net), chance(), [a.copy() for a in (s.image, s.labels, s.valid)]
    values = transform.values[:3]
    if fails_at is None: sensitivity(net, s, transform(), values, progress=False)
    else: refused(lambda: sensitivity(net, s, transform(), values, progress=False), 'Moody', 'out of luck')
    assert equal(before, state(net)) and luck == chance() and torch.is_grad_enabled()
    assert all(np.array_equal(a, b) for a, b in zip(arrays, (s.image, s.labels, s.valid)))


@pytest.mark.parametrize('fails_at', [None, 1])
@pytest.mark.parametrize('call', ['predict', 'label', 'logits'])
def test_a_call_leaves_everything_as_it_was(call, fails_at):
    net, x = Moody(fails_at), torch.rand(2, 1, 6, 5)
    before, luck, copy = state(net), chance(), x.clone()
    if fails_at is None: getattr(TorchModel(net), call)(x)
    else: refused(lambda: getattr(TorchModel(net), call)(x), 'Moody')
    assert equal(before, state(net)) and luck == chance() and torch.equal(x, copy) and x.grad is None


@pytest.mark.parametrize('kind', ['tensor', 'array', 'sample'])
def test_a_preprocess_that_works_in_place_does_not_reach_the_input(kind):
    def centred(image):
        image -= 5
        return image
    x = {'tensor': torch.ones(1, 1, 4, 4), 'array': np.ones((1, 1, 4, 4), np.float32), 'sample': Sample(np.ones((1, 4, 4)))}[kind]
    as_model(two, preprocess=centred).predict(x)
    assert float((x.image if kind == 'sample' else x).max()) == 1


def test_metrics_leave_their_input_alone():
    p, t, v = MASK.copy(), MASK.copy(), MASK > 0
    luck = chance()
    score(p, t, ('dice', lambda a, b: a.fill(0) or 1., 'hausdorff95', 'volume'), n_classes=2, valid=v, spacing=1)
    assert luck == chance() and (p == MASK).all() and (t == MASK).all() and (v == (MASK > 0)).all()


def test_gradients_come_without_warnings():
    x = torch.rand(1, 1, 6, 5, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        g, = torch.autograd.grad(as_model(nn.Conv2d(1, 2, 3, padding=1)).logits(x)[:, 1].mean(), x)
    assert g.abs().sum() > 0


# --- fastai: the way back must be right or refused

@pytest.fixture(scope='module')
def learner(tmp_path_factory):
    "Makes Learners whose network finds bright pixels and whose items are resized as given."
    fastai = importlib.import_module('fastai.vision.all')
    from PIL import Image
    folder = tmp_path_factory.mktemp('pictures')
    for i in range(3):
        Image.fromarray(np.full((20, 30), 50*i, np.uint8)).save(folder/f'{i}.png')
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder/f'{i}_mask.png')

    class Bright(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))
        def forward(self, x):
            z = (x.mean(1) - .5)*20*self.w
            return torch.stack([-z, z], 1)

    def make(item=fastai.PILImageBW, **kw):
        block = fastai.DataBlock(blocks=(fastai.ImageBlock(item), fastai.MaskBlock(['background', 'bright'])), get_items=lambda _: [folder/f'{i}.png' for i in range(3)],
                                 get_y=lambda f: f.with_name(f'{f.stem}_mask.png'), splitter=fastai.IndexSplitter([0]), item_tfms=fastai.Resize(**kw))
        return fastai.Learner(block.dataloaders(None, bs=2, num_workers=0), Bright(), loss_func=fastai.CrossEntropyLossFlat(axis=1))
    return make


@pytest.mark.parametrize('shape', [(41, 67), (67, 41), (74, 50), (128, 64), (64, 128), (97, 33)], ids=str)
@pytest.mark.parametrize('how', ['crop', 'squish', ('pad', 'zeros'), ('pad', 'border'), ('pad', 'reflection')], ids=str)
def test_fastai_way_back(learner, how, shape):
    method, mode = how if isinstance(how, tuple) else (how, 'reflection')
    h, w = shape
    r, c = h//2 - 12, w//2 - 8  # off the centre, but inside the square that cropping keeps
    s = Sample(np.zeros((1, h, w)))
    image = s.image.copy()
    image[0, r:r + 16, c:c + 12] = 230
    got = np.argwhere(as_model(learner(size=64, method=method, pad_mode=mode)).label(s.replace(image=image))[0])
    assert np.abs(got.min(0) - (r, c)).max() <= 2 and np.abs(got.max(0) - (r + 15, c + 11)).max() <= 2, (got.min(0), got.max(0), (r, c))


def test_fastai_leaves_random_states_alone(learner):
    learn = learner(size=32)
    modes, luck = [m.training for m in learn.model.modules()], chance()
    as_model(learn).label(Sample(np.full((1, 20, 24), 100.)))
    assert [m.training for m in learn.model.modules()] == modes
    assert [a == b for a, b in zip(luck, chance())] == [True, True, True]  # numpy, torch, random


def test_fastai_options(learner):
    learn = learner(size=32)
    refused(lambda: as_model(learn).label(Sample(np.zeros((2, 8, 8)))), 'channels')
    refused(lambda: as_model(learn, preprocess=lambda x: (x, lambda y, empty: y)).label(Sample(np.zeros((1, 8, 8)))), 'preprocess')
