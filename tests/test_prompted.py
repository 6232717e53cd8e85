"Networks that are prompted: what they get, also resized and slice by slice; prompts that are moved."
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from misas.attribution.attribute import attribute
from misas.data.fingerprint import fingerprint
from misas.data.sample import Sample
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.prompted import Prompted, Sam, holding
from misas.study.study import Study
from misas.sweep.sensitivity import sensitivity
from misas.transforms.intensity import Noise
from misas.transforms.prompt import PromptMargin, PromptShift, draw_box, prompt_of, read_box, with_prompt
from misas.transforms.spatial import Rotation

CLASSES = 'background', 'organ'
ASKED = []


class Filled(nn.Module):
    "Logits of the box itself, 5 inside and -5 outside; what it was asked is kept in `ASKED`."
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, images, boxes):
        ASKED[:] = images.shape, boxes
        inside = images.new_ones((len(images), *images.shape[2:]), dtype=torch.bool)
        for axis in range(boxes.shape[2]):
            at = torch.arange(images.shape[2 + axis]).view([-1 if k == axis else 1 for k in range(boxes.shape[2])])
            ends = boxes[..., axis].view(len(boxes), 2, *[1]*boxes.shape[2])
            inside = inside & (at >= ends[:, 0]) & (at <= ends[:, 1])
        return torch.where(inside, 5., -5.)*self.one + 0*images[:, 0]


@pytest.fixture
def case():
    image = np.random.default_rng(0).random((1, 40, 50), np.float32)
    labels = np.zeros((40, 50), np.uint8)
    labels[10:20, 15:35] = 1
    return with_prompt(Sample(image, labels, spacing=(2, .5), classes=CLASSES, name='case'), 'organ')


def model_of(net=None, **kw): return as_model(Prompted(net or Filled()), activation='sigmoid', classes=CLASSES, **kw)


@pytest.mark.parametrize('seed', range(20))
def test_a_box_is_read_as_it_was_drawn(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(8, 30, rng.integers(2, 4)))
    lower = rng.uniform(-.5, np.array(shape)/2 - 2)
    upper = lower + rng.uniform(2, np.array(shape)/2)
    assert np.allclose(read_box(draw_box(shape, lower, upper)), (lower, upper), atol=1e-4)


def test_the_network_gets_its_box_in_pixels(case):
    assert (model_of().label(case)[0] == case.labels).all()
    shape, boxes = ASKED
    assert tuple(shape) == (1, 1, 40, 50) and np.allclose(boxes[0], [[9.5, 14.5], [19.5, 34.5]], atol=1e-4)
    point = as_model(Prompted(Points(), 'point'), activation='sigmoid', classes=CLASSES)
    point.label(case)
    assert np.allclose(ASKED[0], [[14.5, 24.5]], atol=1e-4)


class Points(nn.Module):
    def forward(self, images, points):
        ASKED[:] = [points]
        return images - .5


@pytest.mark.parametrize('kw', [dict(size=(80, 100)), dict(size=(20, 25)), dict(multiple_of=32)])
def test_the_box_is_resized_and_padded_with_the_image(case, kw):
    found = model_of(**kw).label(case)[0]
    assert (found != case.labels).mean() < (.02 if 'size' in kw else 1e-9)


def test_a_volume_slice_by_slice():
    labels = np.zeros((20, 22, 6), np.uint8)
    labels[4:12, 5:15, 2:4] = 1
    image = np.random.default_rng(0).random((1, *labels.shape), np.float32)
    volume = Sample(image, labels, spacing=1., classes=CLASSES)
    assert (model_of().slicewise().label(with_prompt(volume, 'organ'))[0] == labels).all()
    assert (model_of().label(with_prompt(volume, 'organ'))[0] == labels).all()


def test_a_shift_is_what_it_costs(case):
    "The organ is 20 mm high and 10 mm wide; shifted by 5 mm to the side half of it is missed."
    found = sensitivity(model_of(), case, PromptShift(values=(-5, 0, 5)), progress=False).frame.set_index('value').score
    assert found[0] == 1 and found[5] == found[-5] == .5
    found = sensitivity(model_of(), case, PromptMargin(values=(0, 2)), progress=False).frame.set_index('value').score
    assert found[2] == pytest.approx(2*200/(200 + 12*28))
    down = PromptShift(values=(0, 6), axis=0)
    assert sensitivity(model_of(), case, down, progress=False).frame.set_index('value').score[6] == pytest.approx(.7)


def test_a_study_of_a_prompt(case, tmp_path):
    study = Study(tmp_path/'study', dict(net=model_of(version='1')), [PromptShift(values=(0, 5))])
    study.run([case], progress=False)
    assert study.frame.sort_values('value').score.tolist() == [1, .5]


def test_the_prompt_turns_with_the_image(case):
    central = case.replace(image=np.stack([case.image[0], draw_box((40, 50), (14.5, 14.5), (24.5, 34.5))]))
    turned = Rotation()(central, 90)
    height, width = np.diff(prompt_of(turned), axis=0)[0]
    assert abs(height - 10) < 2.5 and abs(width - 20) < 2.5


def test_noise_in_the_prompt_is_refused_with_the_cure(case):
    with pytest.raises(ValueError, match=r'Noise\(channels=0\)'): model_of().label(Noise()(case, .2))
    assert (model_of().label(Noise(channels=0)(case, .2))[0] == case.labels).all()


def test_held_it_is_a_part_of_the_network(case):
    network, image = holding(Prompted(Bright()), case)
    model = as_model(network, activation='sigmoid', classes=CLASSES)
    free = as_model(Prompted(Bright()), activation='sigmoid', classes=CLASSES)
    assert image.n_channels == 1 and (model.label(image) == free.label(case)).all()
    found = attribute(model, image, Target('organ', region='labels'), 'integrated_gradients', n_steps=4)
    outside = found.map[0][case.labels == 0]
    assert np.abs(outside).max() < 1e-6*np.abs(found.map).max()
    other, _ = holding(Prompted(Bright()), PromptShift()(case, 3))
    assert fingerprint(as_model(other)) != fingerprint(as_model(network))
    assert (pickle.loads(pickle.dumps(model)).label(image) == model.label(image)).all()


class Bright(nn.Module):
    "Brightness within the box."
    def forward(self, images, boxes):
        box = torch.stack([torch.from_numpy(draw_box(tuple(images.shape[2:]), *one.numpy())) for one in boxes])
        return (images[:, 0] - .5)*box - (1 - box)


@pytest.fixture(scope='module')
def tiny_sam():
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig
    torch.manual_seed(0)
    model = SamModel(SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
            window_size=4, global_attn_indexes=[1], mlp_ratio=2., num_pos_feats=8),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=16)))
    for weight in model.parameters(): nn.init.normal_(weight, std=.3)
    return model.eval()


def test_sam_is_asked_as_its_own_processor_would(tiny_sam, case):
    "The box in its pixels: the longer side, 50, has become 64."
    with torch.no_grad():
        images = torch.from_numpy(case.image[None, :1])
        pixels, small = Sam(tiny_sam)._made_ready(images)
        box = torch.tensor([[[15, 10, 35, 20.]]])*64/50
        masks = tiny_sam(pixel_values=pixels, input_boxes=box, multimask_output=False).pred_masks[:, 0]
        mask = nn.functional.interpolate(masks, (64, 64), mode='bilinear')[..., :small[0], :small[1]]
        wanted = nn.functional.interpolate(mask, (40, 50), mode='bilinear')[0, 0]
    found = as_model(Prompted(Sam(tiny_sam)), activation='sigmoid', classes=CLASSES).logits(case)[0, 1]
    assert small == [51, 64] and pixels.shape == (1, 3, 64, 64)
    assert torch.allclose(found, wanted, atol=2e-2*float(wanted.abs().max()))


@pytest.mark.parametrize('kind', ['box', 'point'])
def test_sam_depends_on_its_prompt_and_gives_gradients(tiny_sam, case, kind):
    model = as_model(Prompted(Sam(tiny_sam), kind), activation='sigmoid', classes=CLASSES)
    assert np.abs(model.predict(case) - model.predict(PromptShift()(case, 5))).max() > 1e-6
    x = torch.from_numpy(case.image[None]).requires_grad_()
    model.logits(x)[:, 1].sum().backward()
    assert x.grad[0, 0].abs().max() > 0 and not x.grad[0, 1].any()
