"A program as a model: what it gets, what it leaves, and how it fails. A stub of a few lines stands in for it."
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from misas.attribution.attribute import attribute
from misas.data.fingerprint import fingerprint
from misas.data.formats import read_nifti, write_nifti
from misas.data.sample import Sample
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.command import words_of
from misas.models.output import NoLogits
from misas.study.settings import in_doubt
from misas.study.study import Study
from misas.sweep.sensitivity import sensitivity
from misas.transforms.intensity import Brightness

STUB = '''
import gzip, sys
import numpy as np
image, out, *options = sys.argv[1:]
data = gzip.open(image).read()
values = np.frombuffer(data, np.float32, offset=352)
head = bytearray(data[:352])
head[70:74] = (2).to_bytes(2, 'little') + (8).to_bytes(2, 'little')  # whole numbers of 8 bits
for name in options or ['']:
    lowest = {'': .5, 'bright': .5, 'brightest.nii.gz': .8}.get(name, .5)
    lowest = float(name.split('>')[1]) if '>' in name else lowest
    to = out + ('/' + name.split('>')[0] + '.nii.gz' if name else '')
    gzip.open(to, 'wb').write(bytes(head) + (values > lowest).astype(np.uint8).tobytes())
open(__file__ + '.runs', 'a').write('.')
'''
CLASSES = 'background', 'bright'
TILTED = np.array([[-1.8, .3, 0, 40], [.3, 1.8, .2, -30], [0, -.2, 3, 5], [0, 0, 0, 1]])


@pytest.fixture
def stub(tmp_path):
    "The words that run the stub, which lies in a folder with blanks and quotes in its name."
    folder = tmp_path/"a folder with 'blanks'; and $HOME"
    folder.mkdir()
    (folder/'stub.py').write_text(STUB)
    return [sys.executable, str(folder/'stub.py')]


@pytest.fixture
def case():
    image = np.random.default_rng(0).random((1, 9, 8, 5), np.float32)
    return Sample(image, (image[0] > .5).astype(np.uint8), affine=TILTED, classes=CLASSES, name='case')


def runs(stub): return len(Path(stub[1] + '.runs').read_text()) if Path(stub[1] + '.runs').exists() else 0


def model_of(stub, *more, **kw):
    return as_model(command=[*stub, '{image}', '{out}.nii.gz', *more], **{'classes': CLASSES, **kw})


def script(tmp_path, text):
    "Words that run a program of its own."
    (tmp_path/'program.py').write_text(text)
    return [sys.executable, str(tmp_path/'program.py'), '{image}', '{out}']


def test_its_labels_are_those_of_the_program(stub, case):
    model = model_of(stub, name='stub')
    assert (model.label(case)[0] == case.labels).all() and model.predict(case).shape == (1, 2, 9, 8, 5)
    assert (model.masks([case, case])[:, 1] == case.labels).all()
    assert (model.on(case).label(case.image[None]) == case.labels).all()
    assert runs(stub) == 5 and 'background, bright; output: label maps' in repr(model)


def test_a_command_may_be_one_text(stub, case):
    import shlex
    model = as_model(command=f'{shlex.join(stub)} {{image}} {{out}}.nii.gz', classes=CLASSES)
    assert (model.label(case)[0] == case.labels).all()


def test_no_shell_sees_it(stub, case, tmp_path):
    told = tmp_path/'touched'
    words = f'"{sys.executable}" "{tmp_path}/w.py" {{image}} {{out}} ; touch {told} $(touch {told}) | tee {told}'
    (tmp_path/'w.py').write_text('import sys\nraise SystemExit("got " + " ".join(sys.argv[3:]))')
    model = as_model(command=words, classes=CLASSES)
    with pytest.raises(ValueError, match=r'got ; touch .* \$\(touch .*\) \| tee'): model.label(case)
    assert not told.exists()


def test_the_image_lies_where_it_was(case, tmp_path):
    kept = tmp_path/'kept.nii.gz'
    words = script(tmp_path, f'import shutil, sys\nshutil.copy(sys.argv[1], {str(kept)!r})\nraise SystemExit("enough")')
    for sample in (case, case.replace(affine=None, spacing=(1, 2, 3.))):
        with pytest.raises(ValueError, match='enough'): as_model(command=words, classes=CLASSES).label(sample)
        written = read_nifti(kept)
        assert np.array_equal(written['image'], sample.image)
        wanted = np.diag([1, 2, 3, 1.]) if sample.affine is None else TILTED
        assert np.abs(written['affine'] - wanted).max() < 1e-5


def test_a_volume_without_a_place_is_refused(stub, case):
    model = model_of(stub)
    for asked in (case.replace(affine=None, spacing=None), case.image[None]):
        with pytest.raises(ValueError, match=r'pass a Sample with affine= or spacing='): model.label(asked)
    assert runs(stub) == 0


def test_pictures_are_volumes_of_one_slice(stub):
    picture = Sample(np.random.default_rng(1).random((1, 6, 11), np.float32), spacing=(2, .5))
    assert (model_of(stub).label(picture)[0] == (picture.image[0] > .5)).all()
    assert (model_of(stub).label(picture.image[None])[0] == (picture.image[0] > .5)).all()


def test_channels(stub, case):
    two = case.replace(image=np.concatenate([case.image, 1 - case.image]))
    second = as_model(command=[*stub, '{image_1}', '{out}.nii.gz'], classes=CLASSES)
    assert (second.label(two)[0] == (two.image[1] > .5)).all()
    by_folder = as_model(command=[*stub, '{images}/case_0001.nii.gz', '{out}/case.nii.gz'], classes=CLASSES)
    assert (by_folder.label(two) == second.label(two)).all()  # as nnU-Net names them; the folder is there
    for model, sample, words in ((model_of(stub), two, 'wants {image}, but the image has 2 channels: write {image_0}'),
                                 (second, case, 'wants {image_1}, but the image has 1 channel')):
        with pytest.raises(ValueError) as told: model.label(sample)
        assert words in str(told.value)


def test_a_folder_of_masks(stub, case):
    both = [*stub, '{image}', '{out}/.', 'very bright>.8', 'bright>.5', 'other>.1']
    v = case.image[0]
    overlapping = as_model(command=both, classes=('bright', 'Very_bright'), activation='masks')
    assert overlapping.overlapping and (overlapping.masks(case)[0] == [v > .5, v > .8]).all()
    exclusive = as_model(command=both, classes=('background', 'very bright'))
    assert (exclusive.label(case)[0] == (v > .8)).all()
    shared = as_model(command=both, classes=('background', 'bright', 'very bright'))
    with pytest.raises(ValueError, match="bright and very bright share .* pass activation='masks'"): shared.label(case)
    with pytest.raises(ValueError, match='left no file for liver, but bright.nii.gz, other.nii.gz'):
        as_model(command=both, classes=('background', 'liver')).label(case)


@pytest.mark.parametrize('leaves, words', [
    ('pass', 'left no .nii .nii.gz'),
    ('save(np.zeros((9, 8, 6), np.uint8), A)', 'lies on another grid; resample it'),
    ('save(np.zeros((9, 8, 5), np.uint8), np.diag([2, 2, 2, 1]) @ A)', 'lies on other voxels'),
    ('save(np.full((9, 8, 5), 7, np.uint8), A)', 'holds the label 7, but classes names only 0 to 1'),
    ('save(np.full((9, 8, 5), .5, np.float32), A)', 'holds fractions'),
    ('save(np.zeros((9, 8, 5, 2), np.uint8), A)', "has 2 channels, a label map has one: pass activation='masks'"),
    ('open(sys.argv[2] + ".nii.gz", "wb").write(b"x")', 'failed on an input'),
    ('print("a"); print("b", file=sys.stderr); sys.exit(3)', 'code 3; it said: b'),
    ('print("one"); print("two"); sys.exit(3)', r'code 3; it said: one \| two'),
    ('sys.exit(3)', 'it said nothing')])
def test_what_a_program_may_leave(tmp_path, case, leaves, words):
    text = 'import sys\nimport nibabel, numpy as np\nA = nibabel.load(sys.argv[1]).affine\n' + (
        'def save(a, A): nibabel.save(nibabel.Nifti1Image(a, A), sys.argv[2] + ".nii.gz")\n' + leaves)
    model = as_model(command=script(tmp_path, text), classes=CLASSES, name='program')
    with pytest.raises(ValueError, match=words) as told: model.label(case)
    assert str(told.value).startswith('program') and '\n' not in str(told.value)


def test_a_program_may_turn_the_volume(tmp_path, case):
    "As those that work in RAS do: its labels are put back exactly."
    text = ('import sys, nibabel, numpy as np\nimage = nibabel.as_closest_canonical(nibabel.load(sys.argv[1]))\n'
            'labels = (image.get_fdata() > .5).astype(np.uint8)\n'
            'nibabel.save(nibabel.Nifti1Image(labels, image.affine), sys.argv[2] + ".nii")')
    turned = case.replace(image=case.image.swapaxes(1, 3), labels=case.labels.swapaxes(0, 2),
                          affine=TILTED[:, [2, 1, 0, 3]], spacing=None)
    model = as_model(command=script(tmp_path, text), classes=CLASSES)
    for sample in (case, turned): assert (model.label(sample)[0] == sample.labels).all()


def test_one_that_takes_too_long_is_ended_with_what_it_started(tmp_path, case):
    child = tmp_path/'child'
    text = (f'import subprocess, sys, time\nprint("loading weights", flush=True)\n'
            f'p = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])\n'
            f'open({str(child)!r}, "w").write(str(p.pid))\ntime.sleep(600)')
    model = as_model(command=script(tmp_path, text), classes=CLASSES, timeout=5)
    with pytest.raises(ValueError, match='took more than 5 s and .* said: loading weights'): model.label(case)
    if child.exists(): assert gone(int(child.read_text()))


def gone(pid):
    "Has a process ended? One that nobody has asked about is a zombie."
    for _ in range(200):
        try: os.kill(pid, 0)
        except ProcessLookupError: return True
        if 'Z' in Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]: return True
        time.sleep(.05)
    return False


def test_nothing_is_left_where_it_is_stopped(tmp_path):
    "Ctrl-C while the program works: it ends, and its files are gone."
    started, temporary = tmp_path/'started', tmp_path/'tmp'
    temporary.mkdir()
    words = script(tmp_path, f'import os, time\nopen({str(started)!r}, "w").write(str(os.getpid()))\ntime.sleep(600)')
    (tmp_path/'ask.py').write_text(
        'import signal\nimport numpy as np\nfrom misas.data.sample import Sample\n'
        'from misas.models.command import CommandModel\n'
        'signal.signal(signal.SIGINT, signal.default_int_handler)\n'  # what runs in the background is told to ignore it
        f'model = CommandModel({words!r}, classes=("a", "b"))\n'
        'try: model.label(Sample(np.zeros((1, 4, 4, 4), np.float32), spacing=1.))\n'
        'except KeyboardInterrupt: print("stopped")')
    env = {**os.environ, 'TMPDIR': str(temporary)}
    asking = subprocess.Popen([sys.executable, str(tmp_path/'ask.py')], env=env, stdout=subprocess.PIPE, text=True)
    try:
        while not started.exists() or not started.read_text():
            assert asking.poll() is None
            time.sleep(.05)
        assert list(temporary.glob('misas_*'))
        asking.send_signal(signal.SIGINT)
        assert asking.communicate(timeout=60)[0] == 'stopped\n'
    finally: asking.kill()
    assert not list(temporary.glob('misas_*')) and gone(int(started.read_text()))


def test_nothing_is_left_where_it_fails(tmp_path, case, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    model = as_model(command=script(tmp_path, 'raise SystemExit("no")'), classes=CLASSES)
    with pytest.raises(ValueError, match='it said: no'): model.label(case)
    assert not list(tmp_path.glob('misas_*'))


def test_it_travels_and_is_told_apart(stub, case):
    model = model_of(stub)
    same = pickle.loads(pickle.dumps(model))
    assert (same.label(case) == model.label(case)).all()
    others = [model_of(stub, 'bright'), model_of(stub, version='2'), model_of(stub, classes=('background', 'light')),
              model_of(stub, activation='masks', classes=('bright',))]
    assert len({fingerprint(one) for one in [model, *others]}) == 5 and fingerprint(same) == fingerprint(model)
    assert model_of(stub, timeout=3).settings()['fingerprint'] == model.settings()['fingerprint']
    assert not in_doubt(model) and list(in_doubt(others[1])) == ['without version']


def test_a_version_counts_for_every_model():
    def double(x): return 2*x
    assert len({fingerprint(as_model(double, version=version)) for version in (None, '1', '2')}) == 3


def test_a_sweep_costs_one_run_for_each_value(stub, case):
    swept = sensitivity(model_of(stub), case, Brightness(values=(.8, 1, 1.3)), progress=False)
    plain = sensitivity(as_model(lambda x: (x > .5).astype(int)[:, 0], classes=CLASSES), case,
                        Brightness(values=(.8, 1, 1.3)), progress=False)
    assert swept.frame.score.tolist() == plain.frame.score.tolist() and swept.frame.score.nunique() == 3
    assert runs(stub) == 3


def test_a_study(stub, case, tmp_path):
    study = Study(tmp_path/'study', dict(program=model_of(stub, version='1')), [Brightness(values=(1, 1.3))])
    study.run([case], progress=False)
    assert study.frame.query('value == 1').score.tolist() == [1] and runs(stub) == 2


def test_gradients_are_refused_and_occlusion_is_offered(stub, case):
    model, target = model_of(stub), Target('bright', region='labels')
    with pytest.raises(NoLogits, match='no logits or gradients'): model.logits(case)
    assert runs(stub) == 0
    with pytest.raises(ValueError, match='is a command: .*use a method without gradients, such as occlusion'):
        attribute(model, case, target, 'integrated_gradients')
    found = attribute(model, case, Target('bright', region='labels', log_odds=True), 'occlusion', size=8., stride=8.)
    assert np.isfinite(found.map).all() and found.map.any()


@pytest.mark.parametrize('kw, words', [
    (dict(classes=None), 'needs classes='),
    (dict(activation='softmax'), "must be 'labels' or 'masks'"),
    (dict(obj=lambda x: x), 'obj and command exclude each other'),
    (dict(size=8), 'size is for networks'),
    (dict(window=8), 'window is for networks'),
    (dict(device='cpu'), 'device is for networks'),
    (dict(threshold=.3), 'threshold is for networks'),
    (dict(resize_output=True), 'resize_output is for networks'),
    (dict(timeout=-1), 'timeout must be seconds'),
    (dict(command='totalsegmentator -i {image} -o {out}'), 'begins with totalsegmentator, which is no program here'),
    (dict(command='seg {image}'), 'must say where its answer goes'),
    (dict(command='seg {out}'), 'must say where the image goes'),
    (dict(command='seg {image} {out} {mask}'), 'names {mask}, which stands for nothing'),
    (dict(command="seg {image} {out} 'x"), 'cannot be cut into words')])
def test_wrong_use(kw, words):
    given = dict(command=[sys.executable, '{image}', '{out}'], classes=CLASSES) | kw
    with pytest.raises(ValueError) as told: as_model(given.pop('obj', None), **given)
    assert words in str(told.value)


def test_a_time_without_a_command():
    with pytest.raises(ValueError, match='pass command= too'): as_model(torch.nn.Conv2d(1, 2, 1), timeout=3)


def test_braces_that_are_none_of_ours():
    assert words_of(['seg', '{image}', '{out}', '{"a": 1}', '{}'])[3:] == ('{"a": 1}', '{}')
    with pytest.raises(ValueError, match='names {HOME}, which'): words_of('seg {image} {out} ${HOME}')


def test_masks_in_one_file(tmp_path, case):
    nested = np.stack([case.image[0] > .5, case.image[0] > .8]).astype(np.uint8)
    write_nifti(tmp_path/'nested.nii.gz', nested, TILTED)
    copy = f'shutil.copy({str(tmp_path/"nested.nii.gz")!r}, sys.argv[2] + ".nii.gz")'
    words = script(tmp_path, f'import shutil, sys\n{copy}')
    model = as_model(command=words, classes=('bright', 'very bright'), activation='masks')
    assert (model.masks(case)[0] == nested).all()
    with pytest.raises(ValueError, match='has 2 channels, but classes names 1'):
        as_model(command=words, classes=('bright',), activation='masks').masks(case)
