"Where a layer looks: against gradients of single rows of cells, for networks of many kinds, and refusals where it cannot be known."
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from misas.attribution.attribute import attribute, methods
from misas.data.sample import Sample
from misas.inside.activations import Listener
from misas.inside.placement import Follower, placement
from misas.inside.question import Refused
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.hold import trace


def block(i, o, **kw): return nn.Sequential(nn.Conv2d(i, o, 3, **{'padding': 1, **kw}), nn.ReLU())


class UNet(nn.Module):
    "Pads to a multiple of 64 and crops; is not padded at all (after a margin); or mirrors its margins."
    def __init__(self, how, width=8):
        super().__init__()
        self.how = how
        kw = dict(padding=0) if how == 'valid' else dict(padding_mode='reflect') if how == 'reflect' else {}
        self.a, self.b, self.c = (block(i, o, **kw) for i, o in ((1, width), (width, 2*width), (2*width, 4*width)))
        self.u1, self.d1 = nn.ConvTranspose2d(4*width, 2*width, 2, 2), block(4*width, 2*width, **kw)
        self.u2, self.d2 = nn.ConvTranspose2d(2*width, width, 2, 2), block(2*width, width, **kw)
        self.o = nn.Conv2d(width, 2, 1)

    def middle(self, x, shape):
        rows, columns = ((n - m)//2 for n, m in zip(x.shape[2:], shape))
        return x[..., rows:rows + shape[0], columns:columns + shape[1]]

    def up(self, skip, x): return torch.cat([self.middle(skip, x.shape[2:]), x], 1)

    def forward(self, x):
        shape = x.shape[2:]
        if self.how == 'inside': x = F.pad(x, (0, -shape[1] % 64, 0, -shape[0] % 64))
        if self.how == 'valid': x = F.pad(x, (20, 20, 20, 20))
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        d1 = self.d1(self.up(b, self.u1(self.c(F.max_pool2d(b, 2)))))
        o = self.o(self.d2(self.up(a, self.u2(d1))))
        return o[..., :shape[0], :shape[1]] if self.how == 'inside' else self.middle(o, shape)


class Chain(nn.Module):
    "Layers one after the other; `before` changes the image, and the result is enlarged."
    def __init__(self, *layers, before=None, after=None):
        super().__init__()
        self.layers, self.before, self.after = nn.Sequential(*layers), before, after
        last = [layer for layer in self.layers.modules() if isinstance(layer, nn.Conv2d)][-1]
        self.head = nn.Conv2d(last.out_channels, 2, 1)

    def forward(self, x):
        features = self.layers(self.before(x) if self.before else x)
        if self.after: features = self.after(features)
        return F.interpolate(self.head(features), x.shape[2:])


class Two(nn.Module):
    "Two encoders of one shape; the second gets the image moved."
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Sequential(block(1, 8, stride=2), block(8, 8, stride=2)) for _ in 'ab')
        self.o = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        both = [self.a(x), self.b(F.pad(x, (10, -10, 6, -6)))]
        return F.interpolate(self.o(torch.cat(both, 1)), x.shape[2:])


def timm_net(name):
    import timm
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = timm.create_model(name, features_only=True, in_chans=1, pretrained=False)
            self.o = nn.Conv2d(self.f.feature_info.channels()[-1], 2, 1)

        def forward(self, x): return F.interpolate(self.o(self.f(x)[-1]), x.shape[2:])
    return Net()


def monai_net(name, *args, **kw):
    import monai.networks.nets as nets
    return getattr(nets, name)(*args, **kw)


def swin(dims):
    return monai_net('SwinUNETR', in_channels=1, out_channels=2, feature_size=12, spatial_dims=dims,
                     depths=(1, 1, 1, 1))


ARCHITECTURES = {
    'padded inside': (lambda: UNet('inside'), (40, 56), ['a', 'b', 'c', 'd1', 'd2']),
    'valid, cropped': (lambda: UNet('valid'), (56, 48), ['a', 'b', 'c', 'd1', 'd2']),
    'mirrored': (lambda: UNet('reflect'), (48, 48), ['a', 'b', 'c', 'd1', 'd2']),
    'strides (2, 1)': (lambda: Chain(block(1, 16), block(16, 16, stride=(2, 1)), block(16, 16, stride=(2, 2))),
                       (48, 40), ['layers.1', 'layers.2']),
    'two encoders': (Two, (48, 48), ['a', 'b', 'a.0', 'b.0']),
    'FlexibleUNet': (lambda: monai_net('FlexibleUNet', 1, 2, 'efficientnet-b0'), (96, 128),
                     ['encoder._blocks.2', 'decoder.blocks.2']),
    'EfficientNet of timm': (lambda: timm_net('efficientnet_b0'), (160, 192), ['f.blocks.2.0.bn1', 'f.blocks.3.1']),
    'EfficientNet as in TensorFlow': (lambda: timm_net('tf_efficientnet_b0'), (150, 192),
                                      ['f.blocks.2.0.bn1', 'f.blocks.3.1']),
    'ConvNeXt': (lambda: timm_net('convnext_atto'), (128, 160), ['f.stages_0', 'f.stages_1', 'f.stages_2.blocks.0']),
    'ResNet': (lambda: timm_net('resnet18'), (96, 128), ['f.layer1', 'f.layer2']),
    'SwinUNETR': (lambda: swin(2), (96, 128), ['encoder2', 'encoder4', 'decoder3', 'decoder1']),
    'UNet': (lambda: monai_net('UNet', 2, 1, 2, (8, 16, 32), (2, 2), num_res_units=2), (64, 80),
             ['model.0', 'model.1.submodule.1', 'model.1.submodule']),
    'SegResNet': (lambda: monai_net('SegResNet', 2, 8, 1, 2), (64, 80), ['down_layers.1', 'down_layers.2', 'up_layers.1']),
    'BasicUNet': (lambda: monai_net('BasicUNet', 2, 1, 2, (8, 8, 16, 32, 64, 8)), (96, 80), ['down_1', 'down_2', 'upcat_2']),
    'DynUNet': (lambda: monai_net('DynUNet', 2, 1, 2, [3]*4, [1, 2, 2, 2], [2]*3), (64, 80),
                ['downsamples.0', 'downsamples.1', 'upsamples.1', 'upsamples.2'])}


class Heard(BaseException): pass


def features_of(network, layer, x):
    "What a layer gives."
    got = []
    def leave(module, args, out):
        got.append(out)
        raise Heard
    hook = layer.register_forward_hook(leave)
    try: network(x)
    except Heard: pass
    finally: hook.remove()
    return got[0]


def gradient_centre(maps, x, axis, row):
    "By brute force: where the squared gradient of the cells of one row has its centre, along one axis."
    cells = maps.select(2 + axis, row)
    slope = torch.autograd.grad((cells*torch.randn_like(cells)).sum(), x, retain_graph=True)[0].double().square()
    along = slope.sum([dim for dim in range(slope.ndim) if dim != 2 + axis])
    return float((along*torch.arange(len(along))).sum()/along.sum())


def where(network, names, shape):
    "Placement of some layers for a random image: {name: [(step, first), ...]}."
    x = torch.randn(1, 1, *shape)
    with Follower(network, {name: network.get_submodule(name) for name in names}) as follower, torch.no_grad(): network(x)
    sizes = {name: features_of(network, network.get_submodule(name), x).shape[2:] for name in names}
    return {name: placement(follower, name, tuple(shape), tuple(sizes[name])) for name in names}


def check(network, names, shape, most=.5):
    "Half a cell at most from the truth, in the middle of each axis."
    for name, place in where(network, names, shape).items():
        x = torch.randn(1, 1, *shape, requires_grad=True)
        maps = features_of(network, network.get_submodule(name), x)
        for axis, (step, first) in enumerate(place):
            middle = np.clip((((shape[axis] - 1)/2 - first)/step), 0, maps.shape[2 + axis] - 1)
            rows = {int(np.clip(round(middle + i), 0, maps.shape[2 + axis] - 1)) for i in (-4, -2, 0, 2, 4)}
            off = np.mean([gradient_centre(maps, x, axis, row) - first - step*row for row in rows])
            assert abs(off) <= most*abs(step), (name, axis, place, off)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_a_layer_lies_where_its_gradient_does(name):
    make, shape, layers = ARCHITECTURES[name]
    torch.manual_seed(0)
    check(make().eval(), layers, shape)


def test_a_volume():
    "Of a transformer, whose attention has no rule."
    torch.manual_seed(0)
    network = swin(3).eval()
    place = where(network, ['encoder3'], (64, 32, 32))
    assert place == dict.fromkeys(place, [(4, 1.5)]*3)


def circular(x): return F.pad(x, (4, 4, 4, 4), mode='circular')


def by_parts(x):
    "Written into a larger image, part by part."
    wide = x.new_zeros(*x.shape[:2], x.shape[2] + 9, x.shape[3] + 5)
    wide[..., 9:, 5:] = x
    return wide


def unpacked(x): return F.pixel_unshuffle(x, 2)[:, :1]
def unfolded(x): return F.unfold(x, 4, stride=4).view(1, 16, x.shape[2]//4, x.shape[3]//4)
def in_place(x): return F.pad(x, (3, 0, 7, 0)).mul_(2).add_(1)
def fourier(x): return torch.fft.ifft2(torch.fft.fft2(x)).real
def sampled(x): return F.grid_sample(x, F.affine_grid(torch.tensor([[[1., 0, 0], [0, 1, .25]]]), x.shape), align_corners=False)


SIBLINGS = {
    'circular': Chain(block(1, 16), before=circular), 'by parts': Chain(block(1, 16), before=by_parts),
    'unpacked': Chain(block(1, 16), before=unpacked), 'in place': Chain(block(1, 16, stride=2), before=in_place),
    'Fourier': Chain(block(1, 16, stride=2), before=fourier), 'sampled elsewhere': Chain(block(1, 16), before=sampled),
    'unfolded': Chain(block(16, 16), before=unfolded), 'mirrored': Chain(block(1, 16, stride=4), before=lambda x: x.flip(3)),
    'stacked': Chain(block(1, 16, dilation=2), before=lambda x: torch.stack([x[..., 6:, :], x[..., :-6, :]], 1).mean(1)),
    'slices': Chain(block(1, 16), before=lambda x: x[..., 5:-3, ::2]), 'max of parts': Chain(
        block(1, 16), before=lambda x: torch.cat(x.split(24, 2), 1).amax(1, keepdim=True)[..., 8:]),
    'channels last': Chain(block(1, 16), nn.ZeroPad2d((2, 0, 0, 5)), block(16, 16)).to(memory_format=torch.channels_last)}


@pytest.mark.parametrize('name', [name for name in SIBLINGS if name != 'max of parts'])
def test_siblings(name):
    "Operations with a rule, and without one."
    torch.manual_seed(0)
    for weight in SIBLINGS[name].parameters(): nn.init.normal_(weight, std=.3)
    check(SIBLINGS[name].eval(), ['layers'], (48, 64))


def test_weights_that_lie_to_one_side():
    "A convolution that shifts looks at where it takes the image from."
    shift = nn.Conv2d(1, 1, 13, padding=6, bias=False)
    nn.init.zeros_(shift.weight)
    with torch.no_grad(): shift.weight[0, 0, 1, 11] = 1
    network = Chain(nn.Sequential(shift, nn.ReLU()), block(1, 16))
    (rows, columns), = where(network.eval(), ['layers.0'], (48, 64)).values()
    assert np.allclose([rows, columns], [(1, -5), (1, 5)], atol=.3)


REFUSED = {
    'rolled': (lambda x: x.roll(17, 2), 'look at places in a row'),
    'transposed': (lambda x: x.transpose(2, 3), 'another order'),
    'all alike': (lambda x: x.mean((2, 3), keepdim=True).expand_as(x) + 0*x.flip(2), 'sees all of the image alike'),
    'mirrored beside itself': (lambda x: x + x.flip(2), 'alike|would|in a row'),
    'deaf': (lambda x: x.flip(2)*0, 'does not answer'),
    'parts upon each other': (SIBLINGS['max of parts'].before, 'alike|in a row')}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_known_is_refused(name):
    before, words = REFUSED[name]
    torch.manual_seed(0)
    network = Chain(block(1, 16), before=before).eval()
    with pytest.raises(Refused, match=f"where layer 'layers' looks is not known: .*({words})"):
        where(network, ['layers'], (48, 48))


class Beside(nn.Module):
    "One layer whose place is not known, and one whose place is."
    def __init__(self):
        super().__init__()
        self.one, self.other, self.head = block(1, 8), block(1, 8), nn.Conv2d(16, 2, 1)

    def forward(self, x): return self.head(torch.cat([self.one(x), self.other(x.roll(17, 2)).roll(-17, 2)], 1))


def spot(shape, at, size=6):
    image = np.zeros((1, *shape), np.float32)
    image[0, at[0]:at[0] + size, at[1]:at[1] + size] = 1
    return Sample(image, spacing=1.), Target(1, image[0] > 0)


def centre(map): return [float((i*map).sum()/map.sum()) for i in np.indices(map.shape)]


def test_the_refusal_is_foretold_and_its_advice_works():
    torch.manual_seed(0)
    model = as_model(Beside().eval(), activation='softmax')
    sample, target = spot((48, 48), (10, 20))
    with pytest.raises(Refused, match='choose another layer, or a method that needs none') as told:
        attribute(model, sample, target, 'layer_gradient_x_activation', layer='other')
    assert "layer 'other'" in str(told.value) and model.name in str(told.value)
    assert np.abs(attribute(model, sample, target, 'layer_gradient_x_activation', layer='one').map).any()
    assert np.abs(attribute(model, sample, target, 'occlusion').map).any()
    asked = methods(model, sample, target).set_index('name').refused  # `layer='auto'` takes the other one
    assert 'looks is not known' in asked['hires_cam'] and not asked['occlusion']


class Constant(UNet):
    "All weights are the same, so that a map lies where the image is bright."
    def __init__(self, how):
        super().__init__(how)
        for name, weight in self.named_parameters(): nn.init.constant_(weight, .1 if 'weight' in name else 0.)


@pytest.mark.parametrize('how', ['inside', 'valid', 'reflect'])
@pytest.mark.parametrize('method', ['grad_cam', 'hires_cam', 'layer_cam', 'layer_conductance', 'layer_activation'])
def test_maps_lie_on_what_is_bright(how, method):
    sample, target = spot((40, 40), (28, 26))
    model = as_model(Constant(how).eval(), activation='softmax')
    more = dict(n_steps=4) if method == 'layer_conductance' else {}
    for layer in ('a', 'b'):
        map = attribute(model, sample, target, method, layer=layer, **more).map[0]
        assert np.allclose(centre(np.abs(map)), [30.5, 28.5], atol=1.5), (layer, centre(map))


@pytest.mark.parametrize('how', [dict(size=(80, 80)), dict(multiple_of=32)])
def test_behind_an_adapter(how):
    "The grid is that of the network's input; the way home is the adapter's."
    sample, target = spot((40, 40), (28, 26))
    model = as_model(Constant('inside').eval(), activation='softmax', **how)
    map = attribute(model, sample, target, 'hires_cam', layer='b').map[0]
    assert np.allclose(centre(map), [30.5, 28.5], atol=1)


def test_features_as_maps_lie_there_too():
    sample, _ = spot((40, 40), (28, 26))
    network = Constant('inside').eval()
    before = trace(network)
    heard = Listener(as_model(network, activation='softmax'), sample, ['a', 'b', 'd1']).hear(sample)
    for layer in ('a', 'b', 'd1'):
        assert np.allclose(centre(heard.on_image(layer, [0])[0]), [30.5, 28.5], atol=1)
    assert trace(network) == before


def test_what_is_known_is_kept_as_long_as_the_network_stays_as_it_is():
    torch.manual_seed(0)
    network = Chain(block(1, 8, stride=2), nn.ZeroPad2d((4, 0, 4, 0)), block(8, 8))
    assert where(network, ['layers'], (48, 48))['layers'] == [(2, -8), (2, -8)]
    network.layers[1].padding = (1, 0, 1, 0)
    assert where(network, ['layers'], (48, 48))['layers'] == [(2, -2), (2, -2)]
    network.before = lambda x: F.pad(x, (5, 0, 5, 0))
    assert where(network, ['layers'], (48, 48))['layers'] == [(2, -7), (2, -7)]
    nn.init.zeros_(network.layers[2][0].weight)
    with torch.no_grad(): network.layers[2][0].weight[:, :, 0, 0] = 1  # it shifts now
    assert np.allclose(where(network, ['layers'], (48, 48))['layers'], [(2, -9), (2, -9)], atol=.5)


def test_a_network_that_fails_leaves_nothing_behind():
    class Fails(Two):
        def forward(self, x):
            self.a(x)
            raise KeyError('no')
    network = Fails()
    before = trace(network)
    with pytest.raises(KeyError), Follower(network, dict(b=network.b)): network(torch.zeros(1, 1, 32, 32))
    assert _get_current_dispatch_mode() is None and trace(network) == before


def test_random_numbers_stay_where_they_are():
    network = Chain(block(1, 16, stride=4), before=lambda x: x.flip(3)).eval()
    torch.manual_seed(3)
    x = torch.randn(1, 1, 48, 64)
    with Follower(network, dict(layers=network.layers)) as follower, torch.no_grad(): network(x)
    before = torch.get_rng_state()
    placement(follower, 'layers', (48, 64), (12, 16))
    assert torch.equal(torch.get_rng_state(), before)
