"""Models of the field as they come: a bundle, a SegFormer, networks of smp, torchvision and timm, ONNX files of other forms."""
import json
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import nbrun
from misas.all import Brightness, Study, Target, as_model, attribute, load, sensitivity
from misas.data.fingerprint import fingerprint
from misas.data.phantom import short_axis, short_axis_stack
from misas.data.sample import Sample
from misas.models.bundle import load_bundle
from misas.models.output import NoGradient

# libraries that are imported by the tests that use them: together they take 300 MB, which the notebooks would find taken
mt, bundles, smp, timm, tv, transformers = map(nbrun.Later, (
    'monai.transforms', 'monai.bundle', 'segmentation_models_pytorch', 'timm', 'torchvision.models.segmentation', 'transformers'))
SHAPE = dict(depths=[1]*4, hidden_sizes=[8, 16, 16, 16], num_attention_heads=[1]*4, decoder_hidden_size=16)


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


@pytest.fixture
def case():
    "A picture with intensities of 8 bits, as floats."
    found = short_axis((70, 90), spacing=2.)
    return found.replace(image=np.rint(found.image.clip(0, 1000)*.255))


@pytest.fixture
def stack(): return short_axis_stack((40, 36, 8), spacing=(4., 4., 10.))


def segformer(**kw):
    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**SHAPE, **kw)).eval()


def goes_through(model, sample, folder, **method):
    "A sweep, an attribution, a study, and another process."
    sweep = sensitivity(model, sample, Brightness(), values=[.8, 1, 1.25])
    assert len(sweep.predictions) == 3
    cls = int(np.unique(model.label(sample))[-1]) or 1
    found = attribute(model, sample, Target(cls, region=np.ones(sample.shape, bool)), **method)
    assert np.isfinite(found.map).all() and np.any(found.map)
    study = Study(folder/'study', dict(net=model), [Brightness([.8, 1.25])]).run([sample])
    assert set(study.frame.value) == {.8, 1, 1.25}
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(sample), model.predict(sample)) and fingerprint(again) == fingerprint(model)


class Backbone(nn.Module):
    "A network of features of timm, and a convolution of the last two."
    def __init__(self):
        super().__init__()
        self.features = timm.create_model('resnet18', features_only=True, pretrained=False, in_chans=1, out_indices=(1, 2))
        self.head = nn.Conv2d(192, 4, 1)

    def forward(self, x):
        fine, coarse = self.features(x)
        return self.head(torch.cat([fine, F.interpolate(coarse, fine.shape[2:])], 1))


def gray(image): return image.expand(3, -1, -1)/255


KINDS = {
    'smp Unet': lambda: as_model(smp.Unet('resnet18', encoder_weights=None, in_channels=1, classes=4)),
    'smp with labels': lambda: as_model(smp.FPN(
        'resnet18', encoder_weights=None, in_channels=1, classes=4, aux_params=dict(classes=2))),
    'torchvision': lambda: as_model(tv.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4, aux_loss=True), preprocess=gray),
    'timm': lambda: as_model(Backbone(), resize_output=True, multiple_of=32),
    'SegFormer': lambda: as_model(segformer(num_labels=4), preprocess=transformers.SegformerImageProcessor(
        size=dict(height=64, width=64)))}


@pytest.mark.parametrize('kind', KINDS)
def test_from_nothing_to_a_study(kind, case, tmp_path):
    goes_through(KINDS[kind](), case, tmp_path, **dict(method='saliency') if kind == 'torchvision' else dict(n_steps=8))


# segmentation_models_pytorch

@pytest.mark.parametrize('name, multiple', [('DeepLabV3Plus', 16), ('Linknet', 32), ('Unet', None)])
def test_the_stride_of_an_encoder_is_found(name, multiple, case):
    net = getattr(smp, name)('resnet18', encoder_weights=None, in_channels=1, classes=3)
    assert as_model(net).multiple_of == multiple and as_model(net).label(case).shape == (1, 70, 90)
    assert as_model(net, multiple_of=64).multiple_of == 64 and as_model(net, size=64).multiple_of is None


# Hugging Face

def test_a_pipeline_is_answered_as_by_itself(case):
    "On a picture of 8 bits of the size that its processor makes nothing is resized, so nothing is rounded."
    names = dict(enumerate(('background', 'a', 'b')))
    processor = transformers.SegformerImageProcessor(size=dict(height=70, width=90))
    pipe = transformers.pipeline('image-segmentation', model=segformer(id2label=names), image_processor=processor)
    picture = Image.fromarray(case.image[0].astype(np.uint8)).convert('RGB')
    labels, theirs = as_model(pipe).label(case)[0], {one['label']: np.asarray(one['mask']) > 0 for one in pipe(picture)}
    assert set(theirs) == {names[k] for k in np.unique(labels)}
    for k in np.unique(labels): assert np.array_equal(theirs[names[k]], labels == k)


def test_a_processor_resizes_and_logits_come_back(case):
    net, processor = segformer(num_labels=4), transformers.SegformerImageProcessor(size=dict(height=96, width=64))
    ready = processor(torch.tensor(case.image).expand(3, -1, -1), return_tensors='pt')['pixel_values']
    with torch.no_grad(): small = net(ready).logits
    assert small.shape == (1, 4, 24, 16) and ready.shape == (1, 3, 96, 64)
    want = F.interpolate(small, (70, 90), mode='bilinear', align_corners=False).softmax(1)
    assert np.allclose(as_model(net, preprocess=processor).predict(case), want, atol=1e-5)
    assert np.isfinite(as_model(net, preprocess=gray).predict(case)).all()  # made ready elsewhere


def test_networks_of_queries(case):
    backbone = dict(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], embed_dim=8, num_heads=[1]*4, window_size=4)
    config = transformers.MaskFormerConfig(
        backbone_config=transformers.SwinConfig(out_features=[f'stage{i}' for i in range(1, 5)], **backbone),
        decoder_config=transformers.DetrConfig(
            d_model=32, encoder_layers=1, decoder_layers=1, num_queries=8, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16),
        mask_feature_size=32, fpn_feature_size=32, num_labels=3)
    net = transformers.MaskFormerForInstanceSegmentation(config)
    processor = transformers.MaskFormerImageProcessor(size=dict(height=64, width=64), do_pad=False)
    model = as_model(net, preprocess=processor)
    ready = processor([torch.from_numpy(case.image[0]).expand(3, -1, -1)], return_tensors='pt')['pixel_values']
    with torch.no_grad(): theirs, = processor.post_process_semantic_segmentation(net.eval()(ready), [case.shape])
    assert np.array_equal(model.label(case)[0], theirs)
    x = torch.from_numpy(case.image[None]).requires_grad_()
    assert torch.autograd.grad(model.logits(x)[:, 1].mean(), x)[0].abs().sum() > 0
    with pytest.raises(ValueError, match='pass preprocess=, the image processor'): as_model(net).label(case)


def test_one_class_of_hugging_face_is_against_background(case):
    model = as_model(segformer(id2label={0: 'lesion'}), preprocess=transformers.SegformerImageProcessor())
    assert model.classes == ('background', 'lesion') and model.predict(case).shape[1] == 2


def test_first_errors_of_hugging_face(case, tmp_path):
    crops = transformers.SegformerImageProcessor(do_center_crop=True)
    with pytest.raises(ValueError, match='set processor.do_center_crop = False'):
        as_model(segformer(), preprocess=crops)
    bare = transformers.SegformerModel(transformers.SegformerConfig(**SHAPE))
    with pytest.raises(ValueError, match='load it with AutoModelForSemanticSegmentation'):
        as_model(bare, preprocess=transformers.SegformerImageProcessor()).label(case)
    bare.save_pretrained(tmp_path/'bare')
    with pytest.raises(ValueError, match='holds SegformerModel, which does not segment'): as_model(tmp_path/'bare')
    segformer().save_pretrained(tmp_path/'alone')
    with pytest.raises(ValueError, match='save it there, too'): as_model(tmp_path/'alone')
    Pipeline = type('Pipeline', (), dict(__module__='transformers.pipelines', task='fill-mask', image_processor=None))
    with pytest.raises(ValueError, match='make one for image-segmentation'): as_model(Pipeline())


# MONAI bundles

def step(name, **options): return {'_target_': name, **options}


def bundle(folder, net, network, before, after=(), inferer='SimpleInferer', classes=('background', 'a', 'b'), **image):
    "A bundle in a folder, made as MONAI makes them."
    formats = dict(
        inputs=dict(image=dict(image)),
        outputs=dict(pred=dict(channel_def={str(k): name for k, name in enumerate(classes)})))
    composed = [step('LoadImaged', keys='image'), step('EnsureChannelFirstd', keys='image'), *before]
    config = dict(
        network_def=network, preprocessing=step('Compose', transforms=composed),
        inferer=step('SlidingWindowInferer', roi_size=[24, 24, 8]) if inferer == 'windows' else step(inferer),
        postprocessing=step('Compose', transforms=list(after)))
    bundles.init_bundle(folder, network=net, metadata_str=dict(network_data_format=formats), inference_str=config)
    return folder


def conv(n, channels=3, inputs=1):
    made = getattr(nn, f'Conv{n}d')(inputs, channels, 3, padding=1)
    return made, step(f'torch.nn.Conv{n}d', in_channels=inputs, out_channels=channels, kernel_size=3, padding=1)


PLACED = [
    step('Orientationd', keys='image', axcodes='PLS'), step('Spacingd', keys='image', pixdim=[3, 3.5, 7]),
    step('CropForegroundd', keys='image', source_key='image', select_fn='$lambda x: x > 700'),
    step('NormalizeIntensityd', keys='image', nonzero=True)]
LAST = [
    step('Activationsd', keys='pred', softmax=True),
    step('Invertd', keys='pred', transform='@preprocessing', orig_keys='image', nearest_interp=False),
    step('AsDiscreted', keys='pred', argmax=True)]


def by_itself(folder, file):
    "What a bundle makes of a file."
    parts = load_bundle(folder, trusted=True)
    with torch.no_grad():
        read = parts.preprocessing({'image': file})
        out = parts.inferer(read['image'][None], parts.network.eval())[0]
        return parts.postprocessing(dict(read, pred=out))['pred'].numpy()


@pytest.mark.parametrize('inferer', ['SimpleInferer', 'windows'])
@pytest.mark.parametrize('nearest', [False, True])
def test_a_bundle_is_answered_as_by_itself(inferer, nearest, stack, tmp_path):
    "Turned, resampled, cropped: the same labels, voxel by voxel, as from the file."
    from misas.data.io import save
    after = [dict(t, nearest_interp=nearest) if t['_target_'] == 'Invertd' else t for t in LAST]
    folder = bundle(tmp_path/'b', *conv(3), PLACED, after, inferer)
    save(stack.replace(labels=None), tmp_path/'image.nii.gz')
    model = as_model(folder, trusted=True)
    assert np.array_equal(model.label(load(tmp_path/'image.nii.gz'))[0], by_itself(folder, tmp_path/'image.nii.gz')[0])
    outside = (model.predict(stack)[0, 0] == 1) & (model.predict(stack)[0, 1:] == 0).all(0)
    assert .1 < outside.mean() < .9  # of its crop


def test_pictures_lie_as_monai_reads_them(case, tmp_path):
    folder = bundle(tmp_path/'b', *conv(2), [step('ScaleIntensityd', keys='image')], [LAST[0], LAST[2]])
    Image.fromarray(case.image[0].astype(np.uint8)).save(tmp_path/'picture.png')
    labels = by_itself(folder, tmp_path/'picture.png')[0]
    assert labels.shape == (90, 70) and np.array_equal(as_model(folder, trusted=True).label(case)[0], labels.T)


def test_a_bundle_from_nothing_to_a_study(stack, tmp_path):
    folder = bundle(tmp_path/'b', *conv(3, 4), PLACED[:2] + PLACED[3:], LAST, classes=stack.classes)
    goes_through(as_model(folder, trusted=True), stack, tmp_path, n_steps=8)


def test_attributions_of_a_bundle_are_complete(stack, tmp_path):
    model = as_model(bundle(tmp_path/'b', *conv(3), PLACED[:2], LAST), trusted=True)
    found = attribute(model, stack, Target(1, region=np.ones(stack.shape, bool)), n_steps=16)
    assert abs(found.delta) < .01


def test_overlapping_classes_channels_and_multiples(tmp_path):
    after = [step('Activationsd', keys='pred', sigmoid=True), step('AsDiscreted', keys='pred', threshold=.3)]
    folder = bundle(
        tmp_path/'b', *conv(3, 3, 2), [], after, classes=('TC', 'WT', 'ET'), spatial_shape=['8*n', '8*n', '4*n'],
        channel_def={'0': 'T1', '1': 'FLAIR'})
    model = as_model(folder, trusted=True)
    image = torch.randn(1, 2, 20, 18, 5)
    assert model.classes == ('TC', 'WT', 'ET') and model.masks(image).shape == (1, 3, 20, 18, 5)
    assert model.model.multiple_of == (8, 8, 4) and model.model.threshold == .3
    assert np.array_equal(model.masks(image), model.predict(image) > .3)
    with pytest.raises(ValueError, match='it wants 2 channels: T1, FLAIR'): model.masks(image[:, :1])


def test_last_steps_work_on_the_decision(stack, tmp_path):
    largest = step('KeepLargestConnectedComponentd', keys='pred', applied_labels=[1, 2])
    plain = as_model(bundle(tmp_path/'a', *conv(3), [], LAST), trusted=True)
    torch.manual_seed(0)
    model = as_model(bundle(tmp_path/'b', *conv(3), [], [*LAST, largest]), trusted=True)
    model.model.module.load_state_dict(plain.model.module.state_dict())
    labels = torch.as_tensor(plain.label(stack))
    want = mt.KeepLargestConnectedComponent(applied_labels=[1, 2])(labels.float())
    assert np.array_equal(model.label(stack), want) and not np.array_equal(model.label(stack), labels)
    assert np.array_equal(model.predict(stack), plain.predict(stack))


def test_where_no_gradient_passes_the_network_can_be_explained_alone(stack, tmp_path):
    blocks = step('Lambdad', keys='image', func='$lambda x: x.detach()*1')
    model = as_model(bundle(tmp_path/'b', *conv(3), [*PLACED[:2], blocks], LAST), trusted=True)
    x = torch.from_numpy(stack.image[None]).requires_grad_()
    with pytest.raises(NoGradient, match=r'attribute\(model.model, model.ready\(sample\)'): model.on(stack).logits(x)
    ready = model.ready(stack)
    assert isinstance(ready, Sample) and np.any(attribute(model.model, ready, Target(1), method='saliency').map)


def test_a_zip_and_code_of_its_own(case, tmp_path):
    "Two bundles may call their own code alike."
    for name, sign in (('a', 1), ('b', -1)):
        folder = bundle(tmp_path/name, None, step('scripts.net.Own'), [], [LAST[0]], classes=('background', 'a'))
        (folder/'scripts').mkdir()
        (folder/'scripts/__init__.py').write_text('')
        (folder/'scripts/net.py').write_text(f'''
import torch
class Own(torch.nn.Module):
    def forward(self, x): return torch.cat([x*0, {sign}*(x - 128)], 1)
''')
        torch.save({}, folder/'models/model.pt')
        with zipfile.ZipFile(tmp_path/f'{name}.zip', 'w') as packed:
            for file in folder.rglob('*'): packed.write(file, file.relative_to(tmp_path))
    found = [as_model(tmp_path/f'{name}.zip', trusted=True).label(case) for name in 'ab']
    assert np.array_equal(found[0][0], case.image[0] > 128) and np.array_equal(found[1][0], case.image[0] < 128)
    assert str(tmp_path) not in ' '.join(sys.path) and 'scripts' not in sys.modules


def test_first_errors_of_bundles(stack, tmp_path):
    folder = bundle(tmp_path/'b', *conv(3), PLACED, LAST)
    with pytest.raises(ValueError, match='pass trusted=True'): as_model(folder)
    with pytest.raises(ValueError, match='pass a Sample with an affine'):
        as_model(folder, trusted=True).label(stack.image[None])
    with pytest.raises(ValueError, match='b in it is a model'): as_model(tmp_path)
    with pytest.raises(ValueError, match=f'pass the folder {folder}'): as_model(folder/'models/model.pt', trusted=True)
    changes = bundle(tmp_path/'c', *conv(3), [], [step('MeanEnsembled', keys='pred'), *LAST])
    with pytest.raises(ValueError, match=r'MeanEnsembled, which is not followed: pass its network'):
        as_model(changes, trusted=True)
    asks = bundle(tmp_path/'d', *conv(3), [step('ScaleIntensityd', keys=['image', 'label'])], LAST)
    with pytest.raises(ValueError, match="leave out of its configuration"): as_model(asks, trusted=True).label(stack)
    file = folder/'configs/inference.json'
    said = json.loads(file.read_text())
    for change, cure in (
        (dict(network_def=step('???')), "'network_def' cannot be made .*: correct its configuration"),
        (dict(network_def=conv(3, 5)[1]), 'has weights of another network than its network_def')):
        file.write_text(json.dumps(said | change))
        with pytest.raises(ValueError, match=cure): as_model(folder, trusted=True)
    file.write_text(json.dumps(said))
    (folder/'models/model.pt').unlink()
    with pytest.raises(ValueError, match='has no weights, models/model.pt: download them'): as_model(folder, trusted=True)
    file.unlink()
    with pytest.raises(ValueError, match='has no configs/inference.json'): as_model(folder, trusted=True)


def test_a_bundle_with_torchscript_alone(stack, tmp_path):
    folder = bundle(tmp_path/'b', None, step('torch.nn.Identity'), [], LAST)
    net, _ = conv(3)
    torch.jit.save(torch.jit.script(net), folder/'models/model.ts')
    said = json.loads((folder/'configs/inference.json').read_text())
    del said['network_def']
    (folder/'configs/inference.json').write_text(json.dumps(said))
    with torch.no_grad(): want = net(torch.from_numpy(stack.image[None])).argmax(1)
    assert np.array_equal(as_model(folder, trusted=True).label(stack), want)


# ONNX files and exported programs

class Half(nn.Module):
    "A network of pictures of 8 bits in half precision."
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Softmax(1))

    def forward(self, x): return self.net(x/255)


def to_onnx(net, file, example):
    axes = dict(x={2: 'h', 3: 'w'}, p={2: 'h', 3: 'w'})
    torch.onnx.export(
        net.eval(), example, str(file), dynamo=False, opset_version=17, input_names=['x'], output_names=['p'],
        dynamic_axes=axes)
    return file


@pytest.mark.filterwarnings('ignore')
def test_onnx_in_half_precision(case, tmp_path):
    net = Half()
    single = as_model(to_onnx(net, tmp_path/'single.onnx', torch.zeros(1, 1, 70, 90)))
    want = single.predict(case)
    model = as_model(to_onnx(net.half(), tmp_path/'half.onnx', torch.zeros(1, 1, 70, 90).half()))
    assert np.allclose(model.predict(case), want, atol=2e-3)
    x = torch.from_numpy(case.image[None]).requires_grad_()
    ours, theirs = (torch.autograd.grad(m.logits(x)[:, 1].mean(), x)[0] for m in (model, single))
    assert (ours - theirs).norm() < .02*theirs.norm()
    goes_through(model, case, tmp_path, n_steps=8)


def test_exported_programs(case, tmp_path):
    net, example = nn.Conv2d(1, 3, 3, padding=1), torch.from_numpy(case.image[None])
    torch.export.save(torch.export.export(net, (example,)), tmp_path/'net.pt2')
    model = as_model(tmp_path/'net.pt2', trusted=True)
    assert np.allclose(model.predict(case), as_model(net).predict(case), atol=1e-5)
    with pytest.raises(ValueError, match='trusted=True'): as_model(tmp_path/'net.pt2')
    (tmp_path/'bad.pt2').write_bytes(b'nonsense')
    with pytest.raises(ValueError, match='cannot be read as an exported program'): as_model(tmp_path/'bad.pt2', trusted=True)


def test_nothing_is_imported_before_it_is_used():
    code = '''
import sys
from misas.all import as_model
as_model(lambda x: x)
assert not {'transformers', 'monai', 'segmentation_models_pytorch', 'timm', 'onnx', 'nnunetv2'} & set(sys.modules)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
