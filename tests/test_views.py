"Every view of structure and trust on the published cardiac network: something comes, nothing is left behind."
import os

import numpy as np
import pytest

from misas.all import Gamma, Target, calibration, concept, embed, feature_maps, kernels, layers, maximise, parts, zoo
from misas.data import datasets
from misas.models.hold import trace
from misas.trust.passes import change_passes

pytestmark = pytest.mark.skipif(not os.environ.get('MISAS_DATA'), reason='needs public data: set MISAS_DATA')


def hearts():
    "The cardiac network, and slices of three patients."
    model, every = zoo.cardiac_net().keep('LV'), datasets.sunnybrook(split='test', phase='ED', mid=True)
    first = every.frame.groupby('patient').head(1).index[:3]
    return model, [every[int(i)] for i in first], 'LV', 'bottleneck/bottleneck/layers/3/silu/Mul'


def numbers(model, samples, cls, layer):
    "A few numbers of every view."
    sample, target = samples[0], Target(cls, 'prediction')
    table = layers(model, sample, measure=[]).frame
    maps = feature_maps(model, samples[:2], layer, cls=cls)
    found = maximise(model, sample, cls, start=sample, steps=2, progress=False)
    places = embed(model, samples, layer=layer)
    sizes = concept(model, samples, values=lambda one: (one.labels == 1).sum(), layer=layer, n_random=5)
    own = parts(model, samples[:2], layer, n=2, negative='clip')
    return {
        'layers': (table.parameters.sum(), table.field.notna().sum() if 'field' in table else len(table)),
        'kernels': kernels(model, 'first').weights.sum(), 'maps': maps.frame['mean'].to_numpy(), 'map': maps.map(0).sum(),
        'maximise': found.value, 'embed': places.frame[['x', 'y']].to_numpy(), 'concept': sizes.direction,
        'slope': sizes.tcav(samples[:1], target).frame.slope.to_numpy(), 'parts': own.on_image(sample).sum(),
        'passes': change_passes(model, sample, [(Gamma(), 1.2)]).frame.dice.to_numpy(),
        'calibration': calibration(model, samples[:2]).ece.ece.to_numpy()}


def test_every_view():
    model, samples, cls, layer = hearts()
    net = model.network
    before = trace(net)
    found = numbers(model, samples, cls, layer)
    again = embed(model, samples, layer=layer).frame[['x', 'y']].to_numpy()
    assert trace(net) == before and np.array_equal(found['embed'], again)
    for view, values in found.items(): assert np.isfinite(np.asarray(values, float)).any(), view
