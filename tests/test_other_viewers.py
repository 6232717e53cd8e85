"""How fast the viewer answers beside others: from the wheel or a key to the painted picture, in one JupyterLab page, turn by turn.

Times are shown at the end of the run, with the medians of 20, and not asserted: they belong to the machine.
niivue takes part where ipyniivue is installed, a prototype of 45 lines where it lies beside the data.
"""
import importlib.util
import os
from pathlib import Path

import numpy as np
from test_widgets import TIMES, View, lab, opened, until  # noqa: F401  (`lab` is a fixture)

PROTOTYPE = Path(os.environ.get('MISAS_DATA', 'data')).resolve().parent/'prototypes'/'viewer.py'
TURNS = 20

OURS = """
import numpy as np
from misas.data import phantom
from misas.data.sample import Sample
from misas.models.adapt import as_model
from misas.sweep.sensitivity import sensitivity
from misas.transforms.intensity import Brightness
from misas.widgets.volume import VolumeExplorer
from misas.widgets.sweep import SweepExplorer
shape = 197, 233, 189
radius = np.linalg.norm(np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij')), axis=0)
brain = Sample(radius[None].astype(np.float32), np.digitize(-radius, [-.9, -.6, -.3]), affine=np.diag([-1., -1, 1, 1]))
heart = phantom.disc((256, 256), radius=60., object=800., background=200.)
swept = sensitivity(as_model(phantom.ThresholdModel(500.), classes=('background', 'bright')), heart.replace(classes=('background', 'bright')), Brightness(), progress=False)
display(VolumeExplorer(brain))
display(SweepExplorer(swept))
"""

NIIVUE = """
import nibabel as nib
from ipyniivue import NiiVue, Volume
viewer = NiiVue(height=400)
for name, values in (('image', brain.image[0]), ('labels', brain.labels.astype(np.float32))):
    nib.save(nib.Nifti1Image(np.asarray(values), brain.affine), name + '.nii')
viewer.load_volumes([dict(path='image.nii'), dict(path='labels.nii', opacity=.5, colormap='red')])
display(viewer)
"""

PROTOTYPED = """
import importlib.util
spec = importlib.util.spec_from_file_location('prototype', {file!r})
prototype = importlib.util.module_from_spec(spec); spec.loader.exec_module(prototype)
grey = np.clip(255*brain.image[0]/brain.image[0].max(), 0, 255).astype(np.uint8)
labels = brain.labels.astype(np.uint8)
display(prototype.Viewer(shape=list(shape), grey=grey.tobytes(), labels=labels.tobytes(), pred=labels.tobytes(),
                         palette=[[0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115]], voxel=[98, 116, 94]))
"""

# The time of an event, and of the frame after the last drawing on any canvas since then.
CLOCK = """() => {
  const clock = window.clock = {start: null, ms: null};
  for (const kind of ['wheel', 'keydown']) window.addEventListener(kind, () => { clock.start = performance.now(); clock.ms = null }, true);
  const painted = () => {
    const start = clock.start;
    if (start === null) return;
    requestAnimationFrame(() => requestAnimationFrame(() => { if (clock.start === start) clock.ms = performance.now() - start }));
  };
  for (const [pen, names] of [[CanvasRenderingContext2D, ['putImageData', 'drawImage']], [WebGL2RenderingContext, ['drawArrays', 'drawElements']]])
    for (const name of names) {
      const draw = pen.prototype[name];
      pen.prototype[name] = function (...given) { painted(); return draw.apply(this, given) };
    }
}"""


def clocked(page, act):
    "Milliseconds from what is done to the last painted picture; it is over when nothing was drawn for a while."
    page.evaluate('() => { clock.start = clock.ms = null }')
    act()
    until(page, lambda: page.evaluate('() => clock.ms') is not None, 30, lambda: 'nothing was painted')
    return page.evaluate('() => clock.ms')


def turn_wheel(page, canvas, k):
    "Turn the wheel over a picture by one slice, to and fro."
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box['x'] + .2*box['width'], box['y'] + .4*box['height'])
    page.wait_for_timeout(100)
    return clocked(page, lambda: page.mouse.wheel(0, 100 if k % 6 < 3 else -100))


def test_wheel_to_painted_picture(lab):  # noqa: F811
    "Three slices of 197 x 233 x 189 with labels, and values of a finished sweep of 256 x 256."
    page = opened(lab, None, OURS + (NIIVUE if importlib.util.find_spec('ipyniivue') else '')
                  + (PROTOTYPED.format(file=str(PROTOTYPE)) if PROTOTYPE.is_file() else ''))
    pictures = {'misas: three slices of 197 x 233 x 189': '.mv canvas'}
    if importlib.util.find_spec('ipyniivue'): pictures['niivue: the same, without curve or hover'] = 'canvas:not([class])'
    if PROTOTYPE.is_file(): pictures['the prototype: the same'] = 'canvas.proto-2'
    page.evaluate(CLOCK)
    view = View(page)
    key = 'misas: next value of a sweep of 256 x 256, a key'
    for k in range(TURNS):
        for name, canvas in pictures.items(): TIMES.setdefault(name, []).append(turn_wheel(page, page.locator(canvas).first, k))
        handle = view['S-value'].locator('.noUi-handle').first
        handle.focus()
        TIMES.setdefault(key, []).append(clocked(page, lambda: handle.press('ArrowRight' if k % 6 < 3 else 'ArrowLeft')))
    assert all(len(TIMES[name]) == TURNS and np.isfinite(TIMES[name]).all() for name in [*pictures, key])
    assert not page.errors, page.errors
    page.close()
