"An nnU-Net as a model: nnU-Net's own predictions to the voxel, and gradients through all that it does to an image."
import os
import pickle
import subprocess
import sys
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from misas.attribution.attribute import attribute
from misas.data.fingerprint import fingerprint
from misas.data.sample import Sample
from misas.inside.target import Target
from misas.models import nnunet_plan
from misas.models.adapt import as_model
from misas.models.nnunet_plan import part_of_nnunet, quietly, resampled, toy_nnunet
from misas.models.output import NoGradient, NoLogits
from misas.models.steady import steady
from misas.sweep.sensitivity import sensitivity
from misas.transforms.intensity import Gamma

TURNED = np.array([[0, -.7, 0, 3], [1.1, 0, 0, 2], [0, 0, -2.5, 9], [0, 0, 0, 1]])
REGIONS = dict(labels={'background': 0, 'whole': [1, 2], 'core': [2]}, order=(1, 2))
SMALL = dict(patch=(8, 8, 8))


def volume(seed=0, shape=(13, 17, 11), spacing=(1, 1, 1), channels=1, affine=None):
    "Noise, with black around it and a hole in it."
    rng = np.random.default_rng(seed)
    image = rng.normal(500, 200, (channels, *shape)).astype(np.float32)
    image[:, :2] = image[:, :, -3:] = image[:, 5:8, 5:8, 5:8] = 0
    return Sample(image, affine=np.diag([*spacing, 1.]) if affine is None else affine)


def predictor(folder, folds=(0,), **kw):
    with quietly():
        found = part_of_nnunet('inference.predict_from_raw_data').nnUNetPredictor(
            device=torch.device('cpu'), allow_tqdm=False, **kw)
        found.initialize_from_trained_model_folder(str(folder), folds)
    return found


def written(folder, cases, where, folds=(0,), workers=0):
    "What nnU-Net writes into its files, in this process or with workers that prepare and export."
    (where/'in').mkdir(parents=True), (where/'out').mkdir()
    for k, case in enumerate(cases):
        for channel, image in enumerate(case.image):
            nib.save(nib.Nifti1Image(image, case.affine), where/'in'/f'case{k}_{channel:04d}.nii.gz')
    found, there = predictor(folder, folds), (str(where/'in'), str(where/'out'))
    with quietly():
        if workers: found.predict_from_files(*there, num_processes_preprocessing=workers, num_processes_segmentation_export=workers)
        else: found.predict_from_files_sequential(*there)
    return [np.asarray(nib.load(where/'out'/f'case{k}.nii.gz').dataobj) for k in range(len(cases))]


PLANS = {  # name -> (how the plan is, how the volumes are)
    'plain': ({}, {}),
    'resampled': (dict(spacing=(2, 1, 1.3)), dict(spacing=(.8, 1.3, 1.7))),
    'thick slices': (dict(spacing=(2, 1, 1)), dict(spacing=(.9, .9, 4.))),
    'transposed': (dict(spacing=(2, 1, 1.2), transposed=(2, 0, 1), masked=True), dict(spacing=(3, .9, .9))),
    'mirrored': (dict(mirrored=(0, 1, 2), transposed=(1, 0, 2)), dict(spacing=(1, 1.2, 1))),
    'folds': (dict(folds=(0, 2), mirrored=(1,)), {}),
    'regions': (dict(channels=('T1', 'CT'), schemes=('ZScoreNormalization', 'CTNormalization'), mirrored=(0,), **REGIONS),
                dict(channels=2, spacing=(1, 1.5, .7))),
    'one region': (dict(labels={'background': 0, 'whole': [1, 2]}, order=(1,)), {}),
    'turned': (dict(reader='NibabelIOWithReorient', spacing=(2, 1, 1.2), transposed=(2, 0, 1)), dict(affine=TURNED)),
    'as it lies': (dict(reader='NibabelIO', spacing=(2, 1, 1.2)), dict(affine=TURNED)),
    'slice by slice': (dict(patch=(8, 8), spacing=(.9, 1.1), mirrored=(0, 1)), dict(spacing=(1, 1, 4)))}


@pytest.mark.parametrize('name', PLANS)
def test_labels_are_those_of_the_files(name, tmp_path):
    how, lying = PLANS[name]
    folder, folds = toy_nnunet(tmp_path/'model', **{**SMALL, **how}), how.get('folds', (0,))
    cases = [volume(seed, **lying) for seed in range(2)]
    model = as_model(folder, trusted=True)
    for case, theirs in zip(cases, written(folder, cases, tmp_path, folds)):
        assert np.array_equal(model.written(case)[0], theirs)
        assert len(np.unique(theirs)) > 1
    assert model.overlapping == (name == 'regions')


def test_labels_are_those_of_its_workers(tmp_path):
    "`predict_from_files`, which people call, prepares and exports in processes of their own."
    how, lying = PLANS['regions']
    folder = toy_nnunet(tmp_path/'model', **{**SMALL, **how})
    cases = [volume(seed, **lying) for seed in range(2)]
    model = as_model(folder, trusted=True)
    for case, theirs in zip(cases, written(folder, cases, tmp_path, workers=1)): assert np.array_equal(model.written(case)[0], theirs)


def test_another_reader_that_turns(tmp_path):
    folder = toy_nnunet(tmp_path/'model', reader='SimpleITKIOWithReorient', spacing=(2, 1, 1.2), **SMALL)
    case = volume(affine=TURNED)
    assert np.array_equal(as_model(folder, trusted=True).label(case)[0], written(folder, [case], tmp_path)[0])


def test_pictures(tmp_path):
    from PIL import Image
    folder = toy_nnunet(
        tmp_path/'model', patch=(16, 16), channels=('R', 'G', 'B'), schemes=['RGBTo01Normalization']*3, spacing=(1.3, 1.2),
        reader='NaturalImage2DIO', ending='.png', mirrored=(0, 1))
    picture = np.random.default_rng(0).integers(0, 255, (30, 41, 3), np.uint8)
    (tmp_path/'in').mkdir(), (tmp_path/'out').mkdir()
    for k in range(3): Image.fromarray(picture[..., k]).save(tmp_path/'in'/f'a_{k:04d}.png')
    with quietly(): predictor(folder).predict_from_files_sequential(str(tmp_path/'in'), str(tmp_path/'out'))
    model, case = as_model(folder, trusted=True), Sample(np.moveaxis(picture, -1, 0).astype(np.float32))
    assert np.array_equal(model.label(case)[0], np.asarray(Image.open(tmp_path/'out'/'a.png')))
    assert np.array_equal(model.label(case.image[None]), model.label(case))  # pictures need no spacing
    assert gap(model, case, Target(1)) < .01
    with pytest.raises(ValueError, match='slicewise'): model.label(volume(channels=3))


# --- gradients

def gap(model, case, target):
    "How far integrated gradients are from completeness, as a fraction of what they explain."
    found = attribute(model, case, target, n_steps=100, progress=False)
    return abs(float(found.delta))/abs(float(found.map.sum()))


@pytest.mark.parametrize('name', ['resampled', 'transposed', 'regions', 'turned'])
def test_integrated_gradients_add_up(name, tmp_path):
    how, lying = PLANS[name]
    model = as_model(toy_nnunet(tmp_path/'model', **{**SMALL, **how}), trusted=True)
    case = volume(shape=(11, 12, 10), **lying)
    smooth = case.replace(image=gaussian_filter(case.image, (0, 1.5, 1.5, 1.5))*(case.image != 0))
    assert gap(model, smooth, Target(1, case.image[0] > 600)) < .01


@pytest.mark.parametrize('name', ['thick slices', 'mirrored', 'folds', 'slice by slice'])
def test_logits_are_those_of_nnunet(name, tmp_path):
    how, lying = PLANS[name]
    model, case = as_model(toy_nnunet(tmp_path/'model', **{**SMALL, **how}), trusted=True), volume(**lying)
    off = np.abs(model.logits(case).softmax(1).numpy() - model.predict(case))
    assert np.quantile(off, .9) < .01


def test_other_logits_are_refused(tmp_path, monkeypatch):
    model, case = as_model(toy_nnunet(tmp_path/'model', **SMALL), trusted=True), volume()
    monkeypatch.setitem(nnunet_plan.NORMALISED, 'ZScoreNormalization', lambda x, like, mask, said: x)
    with pytest.raises(NoGradient, match='another network'): model.logits(case)
    with pytest.raises(ValueError, match='another network'): attribute(model, case, Target(1), 'saliency', progress=False)
    monkeypatch.delitem(nnunet_plan.NORMALISED, 'ZScoreNormalization')
    with pytest.raises(NoLogits, match='ZScoreNormalization'): model.logits(case)
    assert model.label(case).any()  # predictions are those of nnU-Net anyway


SIZES = [((9, 14, 12), (2., 1., 1.), (1., 1.3, .8)), ((7, 14, 12), (6., 1., 1.), (3., 1., .8)), ((9, 8, 30), (1, 1, 1), (1, 2, 5))]


@pytest.mark.parametrize('shape, spacing, other', SIZES)
@pytest.mark.parametrize('order, across', [(3, 0), (1, 0), (3, 3), (0, 0)])
def test_resampling(shape, spacing, other, order, across):
    function = partial(part_of_nnunet('preprocessing.resampling.default_resampling').resample_data_or_seg_to_shape,
                       is_seg=False, order=order, order_z=across, force_separate_z=None)
    compare_resampling(function, shape, spacing, other)


@pytest.mark.parametrize('shape, spacing, other', SIZES)
def test_resampling_by_torch(shape, spacing, other):
    function = partial(part_of_nnunet('preprocessing.resampling.resample_torch').resample_torch_fornnunet, is_seg=False)
    compare_resampling(function, shape, spacing, other)


def compare_resampling(function, shape, spacing, other):
    volume = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    size = [round(n*a/b) for n, a, b in zip(shape, spacing, other)]
    theirs = function(volume.numpy().copy(), size, spacing, other)
    assert np.abs(resampled(volume, function, size, spacing, other).numpy() - theirs).max() < 1e-5


# --- a model like any other

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp('toy')/'nnUNetTrainer__nnUNetPlans__toy'
    return toy_nnunet(folder, mirrored=(0, 2), folds=(0, 1, 'all'), **SMALL)


def test_it_travels_and_is_known_again(toy):
    model, case = as_model(toy, trusted=True, folds=0), volume()
    twin = pickle.loads(pickle.dumps(model))
    assert np.array_equal(twin.predict(case), model.predict(case)) and fingerprint(twin) == fingerprint(model)
    others = [as_model(toy, trusted=True, **kw) for kw in (dict(folds=1), dict(folds=0, mirroring=False), {})]
    assert len({fingerprint(one) for one in (model, *others)}) == 4
    habits = steady(model, case).innermost.habits
    assert habits is not None and not habits.bad


def test_a_predictor_stays_as_it_was(toy):
    given, case = predictor(toy, (0, 1)), volume()
    given.network.load_state_dict(given.list_of_parameters[1])
    before = {k: v.clone() for k, v in given.network.state_dict().items()}
    model = as_model(given)
    assert np.array_equal(model.predict(case), as_model(toy, trusted=True).predict(case))
    attribute(model, case, Target(1), 'saliency', progress=False)
    assert all(torch.equal(v, before[k]) for k, v in given.network.state_dict().items())
    off = predictor(toy, (0, 1), use_mirroring=False)
    assert model.cost(case)['mirrored'] == 4 and as_model(off).cost(case)['mirrored'] == 1
    assert 'ways to mirror' in repr(model) and 'mirror' not in repr(as_model(off))


def test_folds(toy):
    case = volume()
    both, first, last = (as_model(toy, trusted=True, folds=folds).logits(case) for folds in (None, 0, [1]))
    assert torch.allclose(both, (first + last)/2, atol=1e-4)
    assert not torch.allclose(as_model(toy, trusted=True, folds='all').logits(case), first, atol=1e-2)


def test_a_sweep(toy):
    swept = sensitivity(as_model(toy, trusted=True, folds=0), volume().replace(
        labels=np.ones((13, 17, 11), np.uint8)), Gamma(), [.8, 1, 1.2], progress=False)
    assert len(swept.frame) and set(swept.frame['class']) == {'organ', 'lesion'}


def test_windows_are_not_asked_twice(tmp_path):
    how = dict(schemes=['CTNormalization'], patch=(8, 8, 8))
    model, case = as_model(toy_nnunet(tmp_path/'model', **how), trusted=True), volume(shape=(40, 20, 20))
    keeping = model.remembering()
    keeping.logits(case)
    before, windows = keeping.memory.asked, model.cost(case)['windows']
    hidden = case.image.copy()
    hidden[:, 10:13, 10:13, 10:13] = 300
    hidden = case.replace(image=hidden)
    assert torch.allclose(keeping.logits(hidden), model.logits(hidden), atol=1e-3)
    assert before <= windows and keeping.memory.asked - before <= windows/5
    with torch.no_grad(): next(keeping.module.parameters()).mul_(2)  # other weights, other answers
    now = keeping.memory.asked
    keeping.logits(case)
    assert keeping.memory.asked > now
    seen = []
    handle = keeping.module.folds[0].register_forward_hook(lambda *args: seen.append(1))
    keeping.logits(case)
    handle.remove()
    assert len(seen) == windows  # who listens hears the network
    small = model.remembering(size=1)
    assert torch.allclose(small.logits(case), keeping.logits(case), atol=10) and len(small.memory.answers) == 1


# --- wrong use

WRONG = {
    'not trusted': (dict(), 'trusted=True'),
    'no such fold': (dict(folds=7, trusted=True), "folds=7, but with checkpoint_final.pth there is only 0, 1, all"),
    'no such checkpoint': (dict(checkpoint='checkpoint_best.pth', trusted=True), "checkpoint='checkpoint_final.pth'"),
    'preprocess': (dict(preprocess=abs, trusted=True), 'leave it out'),
    'size': (dict(size=64, trusted=True), 'leave it out'),
    'window': (dict(window=64, trusted=True), 'leave window out')}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_options(toy, name):
    kw, cure = WRONG[name]
    with pytest.raises(ValueError) as told: as_model(toy, **kw)
    assert cure in str(told.value)


def test_wrong_folders(toy, tmp_path):
    def error(path):
        with pytest.raises(ValueError) as told: as_model(path, trusted=True)
        return str(told.value)
    assert "folds='0'" in error(toy/'fold_0') and 'pass one of them' in error(toy.parent)
    (tmp_path/'half'/'fold_0').mkdir(parents=True)
    assert 'no plans.json' in error(tmp_path/'half')
    (tmp_path/'half'/'plans.json').write_text('{}')
    assert 'no dataset.json' in error(tmp_path/'half')
    (tmp_path/'half'/'dataset.json').write_text('{}')
    assert 'no fold in it has a checkpoint_final.pth' in error(tmp_path/'half')


def test_wrong_images_and_models(toy, monkeypatch):
    model = as_model(toy, trusted=True, folds=0)
    for image, cure in ((volume(channels=2), '1 channel (T1), the image has 2'), (volume().image[None], 'model.on(sample)')):
        for ask in (model.label, model.logits):
            with pytest.raises(ValueError) as told: ask(image)
            assert cure in str(told.value)
    assert np.array_equal(model.on(volume()).label(volume().image[None]), model.label(volume()))
    with pytest.raises(ValueError, match='for an nnU-Net'): as_model(torch.nn.Conv2d(1, 2, 1), folds=0)
    given = predictor(toy)
    with pytest.raises(ValueError, match='has its weights already'): as_model(given, folds=0)
    with pytest.raises(ValueError, match='initialize_from'): as_model(type(given)(device=torch.device('cpu')))
    given.allowed_mirroring_axes = None
    with pytest.raises(ValueError, match='trained without'): as_model(given, mirroring=True)
    given.configuration_manager.configuration['previous_stage'] = '3d_lowres'
    with pytest.raises(ValueError, match='cascade'): as_model(given)
    given.configuration_manager.configuration.pop('previous_stage')
    monkeypatch.setitem(given.plans_manager.plans, 'image_reader_writer', 'Tiff3DIO')
    with pytest.raises(ValueError, match='Tiff3DIO'): as_model(given)


def test_a_reader_that_turns_must_know_how(tmp_path):
    model = as_model(toy_nnunet(tmp_path/'model', reader='NibabelIOWithReorient', **SMALL), trusted=True)
    with pytest.raises(ValueError, match='affine'): model.label(Sample(volume().image, spacing=1.))
    for wrong in (model.oriented, model.sliding):
        with pytest.raises(ValueError, match='leave'): wrong()


def test_without_nnunet(toy, monkeypatch):
    for name in [name for name in sys.modules if name.startswith('nnunetv2')]: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'nnunetv2', None)
    with pytest.raises(ImportError, match=r'pip install "misas\[nnunet\]"'): as_model(toy, trusted=True)


def test_it_is_imported_when_it_is_used():
    code = 'import sys, misas.models.adapt; print([name for name in sys.modules if name.startswith("nnunetv2")])'
    told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert told.stdout.strip() == '[]'


def test_figures_are_shown_as_before(toy):
    code = ('import sys, matplotlib; matplotlib.use("svg"); from misas.models.adapt import as_model; '
            'as_model(sys.argv[1], trusted=True); print(matplotlib.get_backend())')
    told = subprocess.run([sys.executable, '-c', code, str(toy)], capture_output=True, text=True, check=True)
    assert told.stdout.split()[-1] == 'svg'
