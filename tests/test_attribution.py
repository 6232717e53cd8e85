"""Attribution leaves the network as it was, whatever happens; refuses with reasons; and tells bad input in one sentence."""
import numpy as np
import pytest
import torch
from torch import nn

from misas.attribution import attribute as module
from misas.attribution.attribute import METHODS, attribute, methods
from misas.attribution.quality import infidelity
from misas.data.phantom import disc
from misas.data.sample import Sample
from misas.inside.question import Question, Refused
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.hold import trace
from misas.models.lean import able, lean

SEED = 4  # one where the deepest features speak for the target
QUICK = dict(n_steps=40, n_samples=3)
MORE = dict(rise=12, shapley_sampling=1, lime=130, kernel_shap=130)  # n_samples of the methods that draw coalitions


def unet(d, norm='Batch', act=nn.ReLU):
    "A small network with pooling, upsampling, a skip, in-place activations, in training mode with half of its weights frozen."
    conv, pool, up, norm = (getattr(nn, f'{o}{d}d') for o in ('Conv', 'MaxPool', 'ConvTranspose', f'{norm}Norm'))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.down = nn.Sequential(conv(1, 8, 3, padding=1), norm(8), act()), pool(2)
            self.deep, self.up = nn.Sequential(conv(8, 8, 3, padding=1), norm(8), act()), up(8, 8, 2, 2)
            self.last = nn.Sequential(conv(16, 8, 3, padding=1), act(), conv(8, 2, 1))

        def forward(self, x):
            a = self.first(x)
            return self.last(torch.cat([a, self.up(self.deep(self.down(a)))], 1))

    torch.manual_seed(SEED)
    net = Net().train()
    for n, p in net.named_parameters():
        if n.endswith('bias'): nn.init.zeros_(p)  # what biases get is lost to excitation backprop
    net.first.eval()
    for p in net.first.parameters(): p.requires_grad_(False)
    for p in net.last.parameters(): p.grad = torch.ones_like(p)
    net.first[0].register_forward_hook(lambda m, i, o: None)  # somebody's own
    net.note = ['kept']
    return net


SAMPLES = {2: disc(shape=(24, 20), radius=5), 3: disc(shape=(12, 16, 8), radius=3)}


def quick(name): return {**{k: v for k, v in QUICK.items() if k in METHODS[name].options}, **({'n_samples': MORE[name]} if name in MORE else {})}


@pytest.mark.parametrize('d', [2, 3])
@pytest.mark.parametrize('name', METHODS)
def test_leaves_no_trace(name, d):
    "Byte for byte and hook for hook: after a run, and after being stopped in each of its passes."
    net, sample = unet(d, act=lambda: nn.ReLU(inplace=True)), SAMPLES[d]
    model, target, image = as_model(net, activation='softmax'), Target(1, sample.labels == 1), sample.image.copy()
    before, luck = trace(net), (torch.get_rng_state(), np.random.get_state()[1].copy())
    a = attribute(model, sample, target, name, progress=False, **quick(name))
    assert np.isfinite(a.map).all() and a.map.any() and a.map.shape[1:] == sample.shape

    def clean():
        assert trace(net) == before
        assert torch.equal(torch.get_rng_state(), luck[0]) and np.array_equal(np.random.get_state()[1], luck[1])
        assert np.array_equal(sample.image, image)
    clean()
    again = attribute(model, sample, target, name, progress=False, **quick(name))
    assert np.array_equal(again.map, a.map), 'the same call gives the same numbers'
    passes, stops = [], iter(range(1, 9))
    for stop, error in zip(stops, [KeyboardInterrupt, RuntimeError]*4):
        passes.clear()

        def count(*_, stop=stop, error=error):
            passes.append(1)
            if len(passes) == stop: raise error('stop')
        handle = net.deep[0].register_forward_hook(count)
        stopped = trace(net)
        try: attribute(model, sample, target, name, progress=False, **quick(name))
        except (KeyboardInterrupt, RuntimeError, ValueError): pass
        assert trace(net) == stopped
        handle.remove()
        clean()
        if len(passes) < stop: break


@pytest.mark.parametrize('d', [2, 3])
@pytest.mark.parametrize('name', METHODS)
def test_cost_is_known_before(name, d):
    "What a method says that it will cost is what is counted; and memory is bounded without changing the answer."
    m, sample = METHODS[name], SAMPLES[d]
    model = as_model(unet(d), activation='softmax')
    q = Question(model, sample, Target(1, sample.labels == 1))
    options = {**m.options, **quick(name)}
    a = attribute(model, sample, q.target, name, progress=False, **quick(name))
    said = tuple(m.cost(q, options))
    fits = a.passes <= said if name == 'score_cam' else a.passes == said  # features that are silent in this image cost nothing
    assert fits, f'{name}: {a.passes} counted, {said} announced'
    b = attribute(model, sample, q.target, name, progress=False, internal_batch=3, **quick(name))
    assert np.abs(b.map - a.map).max() < 1e-4*np.abs(a.map).max()


def test_gradients_of_a_function_are_refused():
    "A model that is no network gets no gradient method, but all that need only scores."
    sample = SAMPLES[2]
    model = as_model(lambda x: np.stack([1 - x[:, 0], x[:, 0]], 1), activation='softmax', name='f')
    for name, m in METHODS.items():
        if m.family == 'perturbation': assert attribute(model, sample, Target(1, sample.labels == 1), name, progress=False, **quick(name)).map.any()
        else:
            with pytest.raises(Refused, match='f'): attribute(model, sample, Target(1, sample.labels == 1), name, progress=False)


BAD = [
    (dict(target=Target('liver')), "no class 'liver'"),
    (dict(target=2), 'no class 2'),
    (dict(target=Target(1, np.zeros((24, 20), bool))), 'no voxels'),
    (dict(method='gradcam'), 'method must be one of'),
    (dict(method=3), 'method must be one of'),
    (dict(method='grad_cam', layer='up9'), "no layer 'up9'"),
    (dict(baseline=np.zeros((1, 5, 5))), r'baseline has shape \(1, 5, 5\)'),
    (dict(baseline='black'), 'baseline must be one of'),
    (dict(n_steps=0), 'n_steps must be a whole number'),
    (dict(internal_batch=0), 'internal_batch must'),
    (dict(method='feature_ablation', features=np.full((24, 20), 3)), 'features'),
    (dict(method='feature_ablation', features=np.where(np.arange(20) < 10, 0, 5)*np.ones((24, 1), int)), 'features'),
    (dict(method='feature_ablation', features=np.zeros((3, 3), int)), 'features'),
    (dict(method='feature_ablation', features=np.random.default_rng(0).random((24, 20))), 'features'),
]


@pytest.mark.parametrize('kw, match', BAD)
def test_bad_input(kw, match):
    sample = SAMPLES[2]
    model = as_model(unet(2), activation='softmax')
    kw = {'target': Target(1, sample.labels == 1), **kw}
    with pytest.raises(ValueError, match=match) as e: attribute(model, sample, progress=False, **kw)
    assert '\n' not in str(e.value) and len(str(e.value)) < 700


@pytest.mark.parametrize('kw, match', [(dict(method='saliency', baseline='zero'), 'saliency takes no baseline'),
                                       (dict(method='saliency', n_steps=7), 'takes no n_steps'),
                                       (dict(method='grad_cam', sigma=3), 'grad_cam takes no sigma; it takes layer')])
def test_options_that_a_method_does_not_take(kw, match):
    sample = SAMPLES[2]
    with pytest.raises(TypeError, match=match): attribute(as_model(unet(2), activation='softmax'), sample, Target(1, sample.labels == 1), **kw)


def test_class_that_is_not_predicted():
    with pytest.raises(ValueError, match='the model predicts only'):
        attribute(as_model(lambda x: torch.stack([x[:, 0]*0, x[:, 0] - 100], 1), activation='softmax'), SAMPLES[2], 1)


@pytest.mark.parametrize('what', ['zero', 'nan', 'shape', 'gap'])
def test_maps_that_must_not_be_believed(what, monkeypatch):
    from dataclasses import replace

    from misas.attribution.method import Raw
    sample = SAMPLES[2]
    raw = {'zero': Raw(torch.zeros(1, 24, 20)), 'nan': Raw(torch.full((1, 24, 20), torch.nan)), 'shape': Raw(torch.ones(1, 5, 5)), 'gap': Raw(torch.ones(1, 24, 20), 1., .3)}[what]
    monkeypatch.setitem(module.METHODS, 'saliency', replace(METHODS['saliency'], run=lambda q: raw))
    match = {'zero': 'zero everywhere', 'nan': 'NaN or infinite', 'shape': 'the map has shape', 'gap': 'miss 30 %'}[what]
    with pytest.raises(ValueError, match=match): attribute(as_model(unet(2), activation='softmax'), sample, Target(1, sample.labels == 1), 'saliency')


def test_methods_table():
    assert list(methods().name) == list(METHODS)
    sample = SAMPLES[2]
    net = unet(2, 'Instance', nn.LeakyReLU)
    before = trace(net)
    table = methods(as_model(net, activation='softmax'), sample, Target(1, sample.labels == 1)).set_index('name')
    assert trace(net) == before
    assert all(table.refused[n] for n in ('deep_lift', 'deep_lift_shap', 'guided_backprop', 'deconvolution')) and not table.refused['saliency']
    assert table.forward['integrated_gradients'] == 52


def test_saved_map_lies_where_the_image_lies(tmp_path):
    import nibabel as nib

    affine = np.array([[-2., 0, 0, 30], [0, 0, 1.5, -20], [0, 3, 0, 5], [0, 0, 0, 1]])
    sample = Sample(SAMPLES[3].image, SAMPLES[3].labels, affine=affine)
    a = attribute(as_model(unet(3), activation='softmax'), sample, Target(1, sample.labels == 1), 'saliency')
    file = nib.load(a.save(tmp_path/'map.nii.gz'))
    assert np.allclose(file.affine, affine) and np.array_equal(np.asarray(file.dataobj), a.map[0])


class Rereads(nn.Module):
    "An in-place ReLU whose input is read again: what it reads then has been overwritten."
    def __init__(self, inplace):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act, self.b, self.c = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.a(x)
        y = self.b(self.act(x))
        return self.c(x + y)


def on_slice(net, method, **kw):
    sample = SAMPLES[2]
    return attribute(as_model(net, activation='softmax'), sample, Target(1, sample.labels == 1), method, progress=False, **kw)


def test_in_place_is_part_of_the_network():
    net, sample = Rereads(True), SAMPLES[2]
    a = on_slice(net, 'saliency')
    with torch.no_grad(): own = net(torch.as_tensor(sample.image[None]))[0, 1][torch.as_tensor(sample.labels == 1)].mean().item()
    assert abs(a.score - own) < 1e-6 and abs(on_slice(Rereads(False), 'saliency').score - own) > 1e-3
    assert on_slice(net, 'deep_lift').gap < 1e-4
    x = torch.as_tensor(sample.image[None]).requires_grad_()
    y = GuidedRule.apply(net.a(x))  # what is read again has been overwritten, and has gone through the ReLU
    net.c(y + net.b(y))[0, 1][torch.as_tensor(sample.labels == 1)].mean().backward()
    assert np.abs(on_slice(net, 'guided_backprop').map - x.grad[0].numpy()).max() < 1e-6*x.grad.abs().max()


class GuidedRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx, g): return g.clamp_min(0)*(ctx.saved_tensors[0] > 0)


def test_guided_where_a_relu_shares_its_input():
    "The skip beside a ReLU keeps its own gradient; the rule is written out by hand here."
    net, sample = Rereads(False).eval(), SAMPLES[2]
    x = torch.as_tensor(sample.image[None]).requires_grad_()
    y = net.a(x)
    net.c(y + net.b(GuidedRule.apply(y)))[0, 1][torch.as_tensor(sample.labels == 1)].mean().backward()
    assert np.abs(on_slice(net, 'guided_backprop').map - x.grad[0].numpy()).max() < 1e-6*x.grad.abs().max()


def test_deep_lift_through_pooling_behind_an_activation():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 1))
    assert on_slice(net, 'deep_lift').gap < 1e-3


def test_images_of_a_batch_that_change_each_other():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Conv2d(8, 2, 1))
    for method in ('rise', 'lime', 'occlusion', 'integrated_gradients', 'smoothgrad', 'layer_conductance'):
        one = on_slice(net, method, internal_batch=1, **quick(method))
        for n in (None, 3):
            many = on_slice(net, method, internal_batch=n, **quick(method))
            assert np.abs(many.map - one.map).max() < 1e-5*np.abs(one.map).max() and many.passes == one.passes
    graded = [infidelity(one, n=8, internal_batch=n, progress=False).value for n in (None, 1)]
    assert abs(graded[0] - graded[1]) < 1e-5


class Forward(nn.Module):
    "A small network of which a part is given as a function."
    def __init__(self, f, ndim=2):
        super().__init__()
        conv = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.f, self.a, self.r, self.b = f, conv(1, 4, 3, padding=1), nn.ReLU(), conv(4, 2, 1)

    def forward(self, x): return self.f(self, x)


def built(f, ndim=2):
    torch.manual_seed(0)
    return Forward(f, ndim).eval()


def by_hand(net, sample, k=1):
    x = torch.as_tensor(sample.image[None]).requires_grad_()
    net(x)[0, k][torch.as_tensor(sample.labels == k)].mean().backward()
    return x.grad[0].numpy()


@pytest.mark.parametrize('mix', [lambda x: x/x.norm()*10, lambda x: x/x.sum((0, 2, 3, 4), keepdim=True)*x[0].numel(), lambda x: x/x.std(),
                                 lambda x: x.reshape(1, *x.shape[1:])], ids=['norm', 'sum', 'std', 'one image'])
def test_one_volume_goes_alone(mix):
    net, ball = built(lambda net, x: net.b(net.r(net.a(mix(x)))), 3), disc((16, 14, 12), radius=4)
    map = attribute(as_model(net, activation='softmax'), ball, Target(1, ball.labels == 1), 'saliency').map
    assert np.abs(map - by_hand(net, ball)).max() < 1e-5*np.abs(map).max()
    one, many = (attribute(as_model(net, activation='softmax'), ball, Target(1, ball.labels == 1), 'lime', n_samples=24, size=6, internal_batch=n) for n in (1, None))
    assert np.abs(one.map - many.map).max() < 1e-5*np.abs(one.map).max()


@pytest.mark.parametrize('first', [nn.Identity(), nn.InstanceNorm2d(1)], ids=['plain', 'standardised'])
def test_norms_over_the_batch_are_found(first):
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    net = built(lambda net, x: net.b(net.r(norm(net.a(first(x))))))
    for method in ('occlusion', 'lime', 'rise'):
        one, many = (on_slice(net, method, internal_batch=n, **quick(method)).map for n in (1, None))
        assert np.abs(one - many).max() < 1e-5*np.abs(one).max()


def test_deep_lift_where_images_of_a_batch_change_each_other():
    "Image and baseline go one after the other then."
    def mixed(net, x):
        h = net.a(x)
        m = h.mean(0, keepdim=True)
        return net.b(net.r(h + .1*(m.roll(3, -1) - m)))
    def alone(net, x):
        h = net.a(x)
        return net.b(net.r(h + .1*(h.roll(3, -1) - h)))
    one, two = (on_slice(built(f), 'deep_lift') for f in (mixed, alone))
    assert one.gap < 1e-4 and np.abs(one.map - two.map).max() < 1e-6*np.abs(two.map).max() and one.passes == (2, 1)


class Padded(nn.Module):
    "Attention that hides a part: in evaluation torch takes a fast way there, which answers differently."
    def __init__(self):
        super().__init__()
        self.mix = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        t = self.a(x).flatten(2).mT
        hidden = torch.arange(t.shape[1]).expand(len(t), -1) % 5 == 0
        return self.b(self.mix(t, src_key_padding_mask=hidden).mT.unflatten(2, x.shape[2:]))


def test_the_prediction_is_that_of_the_model():
    torch.manual_seed(0)
    model, sample = as_model(Padded().eval(), activation='softmax'), disc((12, 14), radius=4)
    seen = attribute(model, sample, Target(1, sample.labels == 1), 'occlusion', size=6).prediction
    assert np.array_equal(seen, model.label(sample)[0])


def test_odd_networks_can_be_looked_at():
    def again(net, x=None, twice=False):
        return net(x=x*1., twice=True) if not twice else net.b(net.r(net.a(x)))
    class Itself(Forward):
        def forward(self, x=None, twice=False): return again(self, x, twice)
    torch.manual_seed(0)
    nets = [Itself(None).eval(), built(lambda net, x: net.b(net.r(net.a(x + 0*(net.eye*net.eye).to_dense()[0, 0]))))]
    nets[1].register_buffer('eye', torch.eye(4).to_sparse())
    for net in nets:
        for method in ('saliency', 'occlusion'): assert on_slice(net, method, **quick(method)).map.any()
    assert on_slice(nets[1], 'grad_cam').map.any()


def test_nothing_to_differentiate():
    "A network that cuts its own gradient, or that tells only probabilities: refused, ahead and when asked."
    def cut(net, x):
        with torch.no_grad(): return net.b(net.r(net.a(x)))
    net, sample = built(cut), disc((16, 20), radius=5)
    for name, m in METHODS.items():
        if m.needs != 'scores':
            with pytest.raises(Refused, match='differentiable way|no influence|statistics'): on_slice(net, name, **quick(name))
    only = as_model(nn.Sequential(built(lambda net, x: net.b(net.r(net.a(x)))), nn.InstanceNorm2d(2), nn.Softmax(1)))
    table = methods(only, sample, Target(1, sample.labels == 1))
    assert table.refused.str.contains('probabilities').all()


def test_relevance_needs_no_gradient_of_the_image():
    model = as_model(unet(2), activation='softmax', preprocess=lambda x: torch.from_numpy(x.numpy()*1.))
    sample = disc((32, 32), radius=8)
    table = methods(model, sample, Target(1, sample.labels == 1)).set_index('name').refused
    assert table['lrp'] == '' and table['grad_cam'] == '' and 'leaves torch' in table['saliency'] and 'leaves torch' in table['guided_backprop']
    assert attribute(model, sample, Target(1, sample.labels == 1), 'lrp').map.any()


def test_compiled_networks_run_as_written():
    plain = on_slice(unet(2), 'guided_backprop')
    net = unet(2)
    net.compile(backend='eager')
    on_slice(net, 'saliency')
    assert np.array_equal(on_slice(net, 'guided_backprop').map, plain.map) and net._compiled_call_impl is not None


def test_channels_last_is_no_feature_map():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.l, self.g, self.u = nn.Conv2d(1, 8, 4, 4), nn.Linear(8, 8), nn.GELU(), nn.ConvTranspose2d(8, 2, 4, 4)

        def forward(self, x): return self.u(self.g(self.l(self.c(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2))
    with pytest.raises(Refused, match='no layer that ends in an activation'): on_slice(Last(), 'grad_cam')
    with pytest.raises(Refused, match='no feature maps'): on_slice(Last(), 'grad_cam', layer='g')


@pytest.mark.parametrize('inside', [torch.no_grad, torch.inference_mode])
def test_inside_no_grad(inside):
    for method in ('saliency', 'deep_lift', 'grad_cam', 'lrp'):
        net = unet(2)
        with inside(): there = on_slice(net, method)
        assert np.allclose(there.map, on_slice(net, method).map, atol=1e-6)


def test_learner_leaves_chance_alone():
    import random

    from misas.demo import demo_learner, demo_sample
    learn, sample = demo_learner(), demo_sample()
    before = random.getstate()
    attribute(learn, sample, 'WM', 'saliency')
    assert random.getstate() == before


def test_onnx_without_translation(tmp_path, monkeypatch):
    "What onnx2torch cannot translate has no gradients, but scores."
    from misas.models.onnx import OnnxModel
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)).eval()
    torch.onnx.export(net, torch.zeros(1, 1, 24, 20), str(tmp_path/'net.onnx'), input_names=['x'], dynamo=False, opset_version=13)

    def fails(self): raise ValueError('onnx2torch cannot translate it, so it has no gradients')
    monkeypatch.setattr(OnnxModel, 'to_torch', fails)
    sample = SAMPLES[2]
    model, target = as_model(tmp_path/'net.onnx', activation='softmax'), Target(1, sample.labels == 1)
    assert np.allclose(attribute(model, sample, target, 'occlusion').map, attribute(as_model(net, activation='softmax'), sample, target, 'occlusion').map, atol=1e-5)
    with pytest.raises(Refused, match='has no gradients; .*such as occlusion'): attribute(model, sample, target, 'saliency')


# ---- classes that overlap ----

def rings(d):
    "Three nested discs as a stack of masks, and the image of them."
    shape = {2: (24, 20), 3: (12, 16, 8)}[d]
    centre = np.array(shape).reshape(-1, *[1]*d)//2
    away = np.sqrt(np.square(np.indices(shape) - centre).sum(0))
    masks = np.stack([away < r for r in (2.5, 4, 6)])
    return Sample(masks.sum(0)[None]/3., masks, spacing=1., classes=('core', 'disc', 'whole'))


def three(d, **kw):
    "A network with a channel for each of the three, and no background."
    net = unet(d)
    torch.manual_seed(SEED)
    net.last[-1] = (nn.Conv2d if d == 2 else nn.Conv3d)(8, 3, 1)
    nn.init.zeros_(net.last[-1].bias)
    return as_model(net, activation='sigmoid', classes=('core', 'disc', 'whole'), **kw)


@pytest.mark.parametrize('d', [2, 3])
@pytest.mark.parametrize('name', METHODS)
def test_overlapping_classes(name, d):
    "Every method explains a channel of its own: what the other channels weigh changes nothing."
    sample, model = rings(d), three(d)
    with torch.no_grad(): model.module.last[-1].weight.abs_().mul_(20)  # features speak for all of the classes
    ask = dict(method=name, progress=False, **quick(name))
    a = attribute(model, sample, Target('disc', 'labels'), **ask)
    assert a.target.k == 2 and a.target.channel == 1 and a.prediction.shape == sample.labels.shape and a.prediction.dtype == bool
    with torch.no_grad(): model.module.last[-1].weight[[0, 2]] *= -3
    b = attribute(model, sample, Target(2, 'labels'), **ask)
    assert np.array_equal(a.map, b.map) and a.score == b.score


def test_overlapping_gradient_is_that_of_the_channel():
    sample, model = rings(2), three(2)
    for k, name in enumerate(sample.classes):
        x = torch.as_tensor(sample.image[None]).requires_grad_()
        model.module.eval()(x)[0, k][torch.as_tensor(sample.labels[k])].mean().backward()
        map = attribute(model, sample, Target(name, 'labels'), 'saliency').map
        assert np.abs(map - x.grad[0].numpy()).max() < 1e-6*np.abs(map).max()


def test_overlapping_regions_scores_and_units():
    sample, model = rings(2), three(2)
    x = torch.as_tensor(sample.image[None])
    found = model.masks(sample)[0]
    inside = Target('whole').freeze(model, sample)
    assert np.array_equal(inside.mask, found[2])
    odds = Target('whole', log_odds=True).freeze(model, sample)
    assert odds.score(model, x).item() == inside.score(model, x).item() and odds.unit == 'log-odds'
    soft = attribute(model, sample, Target('whole', 'labels', reduce='dice'), 'occlusion', size=6)
    p = torch.as_tensor(model.predict(sample))[0, 2]
    mask = torch.as_tensor(sample.labels[2])
    assert abs(soft.score - (2*p[mask].sum()/(p.sum() + mask.sum())).item()) < 1e-6
    rim = Target('core', 'boundary').freeze(model, sample, sample.labels).mask
    assert (rim & sample.labels[0]).any() and (rim & ~sample.labels[0]).any()
    for cls, match in (('edema', r"no class 'edema'; it knows core \(1\), disc \(2\), whole \(3\)"), (0, 'no class 0'), (4, 'no class 4')):
        with pytest.raises(ValueError, match=match): attribute(model, sample, cls)
    exclusive = Target(1, sample.labels[0]).freeze(as_model(unet(2), activation='softmax'), sample)
    with pytest.raises(ValueError, match='exclude each other'): attribute(model, sample, exclusive)


def test_overlapping_masks_without_logits():
    "Probabilities of classes that overlap: refused, unless asked for log-odds, which undo their sigmoid."
    net, sample = three(2).module.eval(), rings(2)
    sure = as_model(nn.Sequential(net, nn.Sigmoid()), activation='masks', classes=sample.classes)
    with pytest.raises(Refused, match='probabilities, not logits.*log_odds=True'): attribute(sure, sample, Target('disc', 'labels'), 'saliency')
    odds = attribute(sure, sample, Target('disc', 'labels', log_odds=True), 'saliency')
    plain = attribute(as_model(net, activation='sigmoid', classes=sample.classes), sample, Target('disc', 'labels'), 'saliency')
    assert np.abs(odds.map - plain.map).max() < 1e-3*np.abs(plain.map).max() and abs(odds.score - plain.score) < 1e-4


def test_overlapping_models_in_pieces():
    "Slice by slice, in windows, one channel, and regions of a label-map model."
    ball, plain = rings(3), three(2)
    slices = plain.slicewise()
    map = attribute(slices, ball, Target('disc', 'labels'), 'hires_cam').map
    assert map.shape == (1, *ball.shape) and map.any()
    sample = rings(2)
    windows = three(2, window=16)
    assert attribute(windows, sample, Target('whole', 'labels'), 'saliency').map.any()
    whole = attribute(plain.channel('whole'), sample.replace(labels=None, classes=None), Target('whole', sample.labels[2]), 'saliency')
    assert not whole.target.overlapping and np.abs(whole.map - attribute(plain, sample, Target('whole', 'labels'), 'saliency').map).max() < 1e-6
    torch.manual_seed(SEED)
    labels = as_model(nn.Conv2d(1, 4, 3, padding=1), activation='softmax', classes=('background', 'a', 'b', 'c'))
    unions = labels.regions(ab=(1, 2), all=(1, 2, 3))
    a = attribute(unions, sample, Target('all', sample.labels[2]), 'saliency')
    assert a.target.overlapping and a.target.k == 2 and a.map.any()


def test_overlapping_maps_are_graded():
    from misas.attribution.curves import deletion
    from misas.attribution.localisation import localisation
    from misas.attribution.sanity import randomisation_check
    from misas.attribution.stability import stability
    from misas.transforms.voxels import Flip
    sample, model = rings(2), three(2)
    with torch.no_grad(): model.module.last[-1].weight.abs_().mul_(20)
    a = attribute(model, sample, Target('whole', 'labels'), 'saliency')
    assert infidelity(a, n=20, progress=False).value < 1
    assert deletion(a, baseline='zero', steps=4, n_random=2, progress=False).value > 0
    assert np.isclose(localisation(a).frame['share'].sum(), 1) and np.isfinite(randomisation_check(a, steps=1, places=1).value)
    found = model.masks(sample)[0, 2]
    mirrored = stability(a, Flip())
    again = model.masks(sample.replace(image=sample.image[:, ::-1], labels=None))[0, 2][::-1]
    dice = 2*(found & again).sum()/(found.sum() + again.sum())
    assert np.isclose(mirrored.frame.dice[mirrored.frame.value != 0], dice).any()
    assert np.array_equal(attribute(model, sample, Target('core', 'labels'), 'feature_ablation', features='labels').map[0] != 0, np.ones(sample.shape, bool))


@pytest.mark.parametrize('what, match', [('network', 'in place'), ('preprocess', 'preprocess leaves torch'), ('cut', 'differentiable way')])
@pytest.mark.parametrize('name', ['saliency', 'integrated_gradients', 'hires_cam', 'layer_conductance', 'guided_backprop'])
def test_reasons_have_types(name, what, match):
    "Whatever takes the gradient, no gradient is a refusal with its reason; and nothing is left behind."
    def overwrites(net, x):
        x = net.r(net.a(x)).sigmoid()
        y = x*x
        x += 1
        return net.b(y + x)

    def cut(net, x):
        with torch.no_grad(): return net.b(net.r(net.a(x)))

    def plain(net, x): return net.b(net.r(net.a(x)))
    net = built(dict(network=overwrites, cut=cut).get(what, plain))
    preprocess = (lambda x: torch.from_numpy(x.numpy()*1.)) if what == 'preprocess' else None
    sample, before = SAMPLES[2], trace(net)
    model = as_model(net, activation='softmax', preprocess=preprocess)
    layers = dict(layer='r') if 'cam' in name or name.startswith('layer') else {}
    needs_image = METHODS[name].needs == 'gradient'
    if what == 'cut' and not needs_image: match = 'no influence'
    if what == 'preprocess' and not needs_image: assert attribute(model, sample, Target(1, sample.labels == 1), name, **layers, **quick(name)).map.any()
    else:
        with pytest.raises(Refused, match=match): attribute(model, sample, Target(1, sample.labels == 1), name, **layers, **quick(name))
    assert trace(net) == before


def test_dice_of_nothing_is_undefined():
    from misas.attribution.stability import stability
    from misas.transforms.voxels import Flip
    sample = SAMPLES[2]
    never = as_model(lambda x: torch.stack([x[:, 0]*0, x[:, 0] - 100], 1), activation='softmax')
    assert stability(attribute(never, sample, Target(1, sample.labels == 1), 'saliency'), Flip()).frame.dice.isna().all()


def passes_of(net):
    "Counts how often a network works."
    seen = []
    net.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize('d', [2, 3])
def test_the_pass_that_predicts_serves(d):
    "From the second map on: one pass for a gradient of the image, the score of the image for the others."
    net, sample = unet(d).eval(), SAMPLES[d]
    seen, model, target = passes_of(net), as_model(net, activation='softmax'), Target(1, sample.labels == 1)
    first = {name: attribute(model, sample, target, name, progress=False, **quick(name)) for name in METHODS}
    wanted = dict(saliency=1, input_x_gradient=1, guided_backprop=1, deconvolution=1, grad_cam=1, layer_cam=1,
                  layer_activation=1, layer_gradient_x_activation=1, guided_grad_cam=2)
    for name, before in first.items():
        seen.clear()
        again = attribute(model, sample, target, name, progress=False, **quick(name))
        assert again.passes == before.passes and np.array_equal(again.prediction, before.prediction)
        size = np.abs(before.map).max()
        assert np.allclose(again.map, before.map, atol=2e-4*size), name
        assert again.score == pytest.approx(before.score, rel=1e-4, abs=1e-5)
        if name in wanted: assert len(seen) == wanted[name], f'{name}: {len(seen)} passes'
        if METHODS[name].family != 'relevance': assert len(seen) <= sum(again.passes) + 1  # that looks for its way first


class Switched(nn.Module):
    "Its activation may be another one."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.act, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)
        self.how, self.names = 'module', {'act': 'relu'}

    def forward(self, x):
        x = self.one(x)
        if self.how == 'module' and self.names['act'] == 'relu': return self.two(self.act(x))
        return self.two(torch.nn.functional.softplus(x))


def patched(self, x): return self.two(torch.tanh(self.one(x)))


CHANGES = dict(
    module=lambda net: setattr(net, 'act', nn.SiLU()), switch=lambda net: setattr(net, 'how', 'else'),
    names=lambda net: net.names.update(act='else'), own_forward=lambda net: setattr(net, 'forward', patched.__get__(net)),
    of_class=lambda net: setattr(type(net), 'forward', patched))


@pytest.mark.parametrize('how', CHANGES)
def test_another_network_is_looked_at_again(how, monkeypatch):
    "What was found out holds as long as modules, switches and code are the same."
    monkeypatch.setattr(Switched, 'forward', Switched.forward)  # put back afterwards
    net, sample = Switched(), SAMPLES[2]
    model, target = as_model(net, activation='softmax'), Target(1, sample.labels == 1)
    def activations(): return Question(model, sample, target, progress=False).anatomy.activations
    before = activations()
    for _ in range(2): attribute(model, sample, target, 'guided_backprop', progress=False)
    CHANGES[how](net)
    assert activations() != before
    with pytest.raises(Refused): attribute(model, sample, target, 'guided_backprop', progress=False)


def test_a_gradient_that_is_cut_later():
    "A cut that came with other weights, or other code, is found."
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.cut = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1), False

        def forward(self, x):
            found = self.one(x)
            return self.two(found*(found.detach() if self.cut else found))
    net, sample = Gate(), SAMPLES[2]
    model, target = as_model(net, activation='softmax'), Target(1, sample.labels == 1)
    for _ in range(2): assert attribute(model, sample, target, 'saliency', progress=False).doubt is None
    net.cut = True
    with pytest.warns(UserWarning, match='detach'): found = attribute(model, sample, target, 'saliency', progress=False)
    assert found.doubt


def test_weights_that_change_between_maps():
    net, sample = unet(2).eval(), SAMPLES[2]
    model, target = as_model(net, activation='softmax'), Target(1, sample.labels == 1)
    for _ in range(2): before = attribute(model, sample, target, 'saliency', progress=False)
    with torch.no_grad(): net.last[2].weight.mul_(2)
    after = attribute(model, sample, target, 'saliency', progress=False)
    assert np.allclose(after.map, 2*before.map, rtol=1e-3, atol=1e-4*np.abs(after.map).max())


CONVOLUTIONS = dict(
    plain=lambda: nn.Conv3d(4, 6, 3, padding=1), strided=lambda: nn.Conv3d(4, 6, 3, 2, 1), one=lambda: nn.Conv3d(4, 6, 1),
    dilated=lambda: nn.Conv3d(4, 6, (3, 1, 3), 1, (2, 0, 2), 2, bias=False), grouped=lambda: nn.Conv3d(4, 8, 3, groups=2),
    of_one=lambda: nn.Conv3d(1, 6, 3, padding=1), each=lambda: nn.Conv3d(4, 4, 3, groups=4), same=lambda: nn.Conv3d(4, 6, 3, padding='same'),
    mirrored=lambda: nn.Conv3d(4, 6, 3, padding=1, padding_mode='reflect'), double=lambda: nn.Conv3d(4, 6, 3).double(),
    turned=lambda: nn.ConvTranspose3d(4, 6, 3, 2, 1, 1), turned_in_groups=lambda: nn.ConvTranspose3d(4, 6, 2, 2, groups=2))


@pytest.mark.parametrize('name', CONVOLUTIONS)
def test_single_volumes(name):
    "The quick way gives what torch gives: forwards, backwards, and backwards twice."
    net = nn.Sequential(CONVOLUTIONS[name]().requires_grad_(False))
    conv = net[0]
    torch.manual_seed(0)
    image = torch.randn(1, conv.in_channels, 9, 8, 7, dtype=conv.weight.dtype)
    def found():
        leaf = image.clone().requires_grad_()
        out = net(leaf)
        slope = torch.autograd.grad(out.sin().sum(), leaf, create_graph=True)[0]
        return out, slope, torch.autograd.grad(slope.square().sum(), leaf)[0]
    usual, before = found(), trace(net)
    with lean(able(net)): quick = found()
    with lean(able(net)), torch.no_grad(): last = net(image)
    assert trace(net) == before
    for one, other in zip((*quick, last), (*usual, usual[0])): assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_quick_way_is_left_to_those_who_follow():
    conv = nn.Conv3d(4, 6, 3, padding=1).requires_grad_(False)
    image = torch.randn(1, 4, 8, 8, 8)
    usual = conv(image)
    with lean(able(conv)):
        with torch.autocast('cpu', torch.bfloat16): assert conv(image).dtype == torch.bfloat16
        conv.weight.requires_grad_(True)
    with lean(able(conv)) as changed: assert not changed
    conv.requires_grad_(False)
    with torch.no_grad(), lean(able(conv)): assert torch.allclose(torch.func.vmap(conv)(image[None])[0], usual, atol=1e-4)
