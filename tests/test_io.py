"What `misas.data.io` must refuse, by name, and what else its notebook has no room for."
import gzip
import importlib
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from misas.data.io import as_sample, load, save
from misas.data.sample import Sample

DATA = os.environ.get('MISAS_DATA')
GREY = np.random.default_rng(0).integers(0, 256, (12, 16)).astype(np.uint8)
VOLUME = np.random.default_rng(1).normal(100, 20, (8, 9, 10)).astype(np.float32)
AFFINE = np.diag([1.5, 1.5, 4, 1])


def write_dicom(path, pixels, kind='MONOCHROME2', **tags):
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = pydicom.uid.MRImageStorage, pydicom.uid.generate_uid()
    ds.set_pixel_data(pixels, kind, pixels.dtype.itemsize*8)
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(path, enforce_file_format=True)


def write_stack(folder, positions, **tags):
    folder.mkdir()
    for i, z in enumerate(positions):
        write_dicom(folder/f'{i}.dcm', GREY + np.uint8(i), **{**dict(
            SeriesInstanceUID='1.2', PixelSpacing=[2, 3], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[0, 0, z]), **tags})
    return folder


@pytest.fixture
def files(tmp_path):
    "A folder with one good file of each kind."
    Image.fromarray(GREY).save(tmp_path/'a.png')
    Image.fromarray(GREY).save(tmp_path/'a.jpg')
    Image.fromarray(GREY).save(tmp_path/'a.bmp')
    Image.fromarray(GREY.astype(np.uint16)*200).save(tmp_path/'deep.png')
    Image.fromarray(GREY.astype(np.float32)/3).save(tmp_path/'a.tif')
    sitk.WriteImage(sitk.GetImageFromArray(np.dstack([GREY]*3).astype(np.uint16)*200, isVector=True), tmp_path/'rgb16.tif')
    nib.save(nib.Nifti1Image(VOLUME, AFFINE), tmp_path/'v.nii')
    nib.save(nib.Nifti1Image(VOLUME, AFFINE), tmp_path/'v.nii.gz')
    nib.save(nib.Nifti1Image((VOLUME > 100).astype(np.uint8), AFFINE), tmp_path/'v_mask.nii.gz')
    for k in ('mha', 'nrrd'): sitk.WriteImage(sitk.GetImageFromArray(VOLUME), tmp_path/f'v.{k}')
    write_dicom(tmp_path/'a.dcm', GREY)
    return tmp_path


FILES = 'a.png a.jpg a.bmp deep.png a.tif rgb16.tif v.nii v.nii.gz v.mha v.nrrd a.dcm'.split()


def error(names, f, *args, kind=ValueError, **kw):
    "`f` must raise, in one line that holds all `names`, and no path unless there is nothing at it."
    with pytest.raises(kind) as e: f(*args, **kw)
    text, folder = str(e.value), str(Path(args[0]).parent if isinstance(args[0], Path) else '//')
    assert '\n' not in text and (kind is FileNotFoundError or folder not in text), text
    for n in [names] if isinstance(names, str) else names: assert n in text, text


@pytest.mark.filterwarnings('ignore::UserWarning')  # of Pillow, before it fails
@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('part', [0, .1, .9])
def test_truncated(files, name, part):
    content = (files/name).read_bytes()
    (files/name).write_bytes(content[:int(len(content)*part)])
    error(f'{name}: cannot be read', load, files/name)


@pytest.mark.parametrize('name', FILES)
def test_other_content(files, name):
    (files/name).write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 5\n')
    error([name, 'git lfs pull'], load, files/name)
    (files/name).write_text('<html>404: not found</html>')
    error(f'{name}: cannot be read', load, files/name)


def test_missing_and_unknown(files):
    error('b.png', load, files/'b.png', kind=FileNotFoundError)
    error('b.nii.gz', load, files/'v.nii', files/'b.nii.gz', kind=FileNotFoundError)
    error('b.nii', load, files/'no'/'b.nii', kind=FileNotFoundError)
    (files/'b.doc').write_text('words')
    error(['b.doc', '.nii.gz'], load, files/'b.doc')
    for x in (GREY, [], None, 3, [files/'a.png', 3]): error('path', load, x, kind=TypeError)
    for x in (dict(image=GREY), None, 3, object()): error(['path', 'array', 'torchio'], as_sample, x, kind=TypeError)
    with pytest.raises(TypeError, match='colour'): load(files/'a.png', colour=1)


def test_image_and_labels_differ(files):
    Image.fromarray(GREY[:5]).save(files/'small.png')
    error(['small.png', 'a.png', '(5, 16)', '(12, 16)'], load, files/'a.png', files/'small.png')
    error(['small.png', 'a.png'], load, [files/'a.png', files/'small.png'])
    error(['a.png', 'labels', '(5, 16)'], load, files/'a.png', GREY[:5])
    flipped = AFFINE.copy(); flipped[0, 0] = -1.5
    nib.save(nib.Nifti1Image((VOLUME > 100).astype(np.uint8), flipped), files/'flipped.nii')
    error(['flipped.nii', 'v.nii', 'mm'], load, files/'v.nii', files/'flipped.nii')
    error(['flipped.nii', 'v.nii', 'mm'], load, [files/'v.nii', files/'flipped.nii'])
    error(['flipped.nii', 'mm'], as_sample, load(files/'v.nii'), files/'flipped.nii')
    near = AFFINE.copy(); near[:3, 3] = .05  # rounded headers are fine
    nib.save(nib.Nifti1Image((VOLUME > 100).astype(np.uint8), near), files/'near.nii')
    assert load(files/'v.nii', files/'near.nii').labels.any()


def test_label_values(files):
    mask = (GREY > 100)*np.uint8(255)
    Image.fromarray(mask).save(files/'m.png')
    Image.fromarray(np.dstack([mask]*3)).save(files/'m3.png')
    Image.fromarray(np.dstack([mask, GREY, mask])).save(files/'colours.png')
    assert load(files/'a.png', files/'m.png').labels.max() == 255
    for m in ('m.png', 'm3.png'): assert np.array_equal(load(files/'a.png', files/m, label_map={255: 1}).labels, mask > 0)
    error(['m.png', '255'], load, files/'a.png', files/'m.png', label_map={1: 1})
    error('colours.png', load, files/'a.png', files/'colours.png')
    error(['v.nii', 'whole numbers'], load, files/'v.nii', files/'v.nii')
    error('label_map', load, files/'a.png', label_map={255: 1})
    assert not load(files/'a.png', np.zeros((12, 16))).labels.any()  # an empty mask is a mask


def test_nan_names_the_file(files):
    bad = VOLUME.copy(); bad[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(bad, AFFINE), files/'bad.nii.gz')
    error(['bad.nii.gz', 'NaN'], load, files/'bad.nii.gz', name='case 1')
    content = bytearray((files/'v.nii').read_bytes())
    content[280:328] = bytes(48)  # the affine in a NIfTI header
    (files/'flat.nii').write_bytes(content)
    error(['flat.nii', 'spacing'], load, files/'flat.nii')


@pytest.mark.parametrize('positions, tags, words', [
    ([0, 5, 15], {}, ['5 to 10 mm']), ([0, 5, 5], {}, ['3 files', '2 positions']), ([0], {}, ['0.dcm itself']), ([], {}, ['no DICOM']),
    ([0, 5], dict(SeriesInstanceUID='1.3', SeriesDescription='cine'), ['2 series', 'cine']), ([0, 5], dict(PixelSpacing=[1, 1]), ['9.dcm', 'PixelSpacing']),
    ([0, 5], dict(ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), ['9.dcm', 'Orientation']), ([0, 5], dict(ImagePositionPatient=None), ['9.dcm', 'Position'])])
def test_bad_stack(tmp_path, positions, tags, words):
    folder = write_stack(tmp_path/'stack', positions)
    if tags: write_dicom(folder/'9.dcm', GREY, **{**dict(SeriesInstanceUID='1.2', PixelSpacing=[2, 3], ImageOrientationPatient=[
        1, 0, 0, 0, 1, 0], ImagePositionPatient=[0, 0, 10]), **tags})
    (folder/'notes.txt').write_text('ignored')
    error(['stack', *words], load, folder)


def test_stack_of_other_sizes_and_broken_slices(tmp_path):
    folder = write_stack(tmp_path/'stack', [0, 5, 10])
    content = (folder/'2.dcm').read_bytes()
    for n in (0, 50, 300, len(content) - 20):
        (folder/'2.dcm').write_bytes(content[:n])
        error(['stack', '2.dcm'], load, folder)
    write_dicom(folder/'2.dcm', GREY[:6], PixelSpacing=[2, 3], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[0, 0, 10], SeriesInstanceUID='1.2')
    error(['stack', '2.dcm', 'Rows'], load, folder)


def test_dicom_values(tmp_path):
    write_dicom(tmp_path/'a.dcm', GREY, RescaleSlope=2, RescaleIntercept=-10, PixelSpacing=[2, 3], WindowCenter=100, WindowWidth=50)
    assert np.array_equal(load(tmp_path/'a.dcm').image[0], GREY*2. - 10) and load(tmp_path/'a.dcm').spacing == (2, 3)
    w = load(tmp_path/'a.dcm', window='file').image
    assert (w.min(), w.max()) == (75, 125)
    write_dicom(tmp_path/'neg.dcm', GREY, 'MONOCHROME1', RescaleSlope='', PixelSpacing=None, WindowCenter='', WindowWidth=None)
    s = load(tmp_path/'neg.dcm')
    assert np.array_equal(s.image[0], 255 - GREY) and not s.spacing_known  # 8 bits, whatever occurs in this slice
    write_dicom(tmp_path/'cine.dcm', np.stack([GREY]*4), NumberOfFrames=4)
    error(['cine.dcm', '4 frames'], load, tmp_path/'cine.dcm')
    error(['cine.dcm', '4 frames'], load, tmp_path/'cine.dcm', frame=4)
    error(['a.dcm', '1 frame;'], load, tmp_path/'a.dcm', frame=2)
    error(['neg.dcm', 'window'], load, tmp_path/'neg.dcm', window='file')
    for w in ('lung', (1,), (40, 0), 3): error('window', load, tmp_path/'a.dcm', window=w)
    v = load(write_stack(tmp_path/'s', [10, 0, 5]))
    assert np.array_equal(v.image[0, :, :, 2], GREY.T) and v.spacing == (3, 2, 5)
    assert np.allclose(v.affine, np.diag([-3, -2, 5, 1]))


@pytest.mark.skipif(not DATA, reason='needs MISAS_DATA')
def test_real_stack():
    heart = Path(DATA)/'sunnybrook_sax_3d'
    a, b = load(heart/'dicom_HF-I-4_ED'), load(heart/'HF-I-4_ED.nii.gz')
    back = np.diag([1., 1, -1, 1]); back[2, 3] = b.shape[2] - 1
    assert np.array_equal(a.image[..., ::-1], b.image) and np.allclose(a.affine @ back, b.affine, atol=1e-3)
    error(['slice04_cine', '20 files', '1 position'], load, heart/'dicom_HF-I-4_slice04_cine')
    assert load(heart/'HF-I-4_ED.nii.gz', heart/'HF-I-4_ED_label.nii.gz').labels.max() == 2


@pytest.mark.parametrize('suffix', ['.nii', '.nii.gz', '.nrrd', '.mha', '.tif', '.png'])
@pytest.mark.parametrize('dims, channels', [(2, 1), (2, 3), (3, 1), (3, 2)])
@pytest.mark.parametrize('spacing', [None, 1.25])
def test_round_trip(tmp_path, suffix, dims, channels, spacing):
    shape = (5, 6, 7)[:dims]
    labels = np.arange(np.prod(shape)).reshape(shape) % 3
    s = Sample(np.stack([labels*10 + c for c in range(channels)]), labels, spacing=spacing)
    picture, nifti = suffix in ('.tif', '.png'), suffix.startswith('.nii')
    if picture and dims == 3 or nifti and (dims, channels) == (2, 3):
        with pytest.raises(ValueError, match=f'x{suffix}: cannot be saved'): save(s, tmp_path/f'x{suffix}')
        assert not list(tmp_path.iterdir())
        return
    paths = save(s, tmp_path/f'x{suffix}')
    assert [p.name for p in paths] == [f'x{suffix}', f'x_labels{suffix}'] == sorted(p.name for p in tmp_path.iterdir())
    t = load(*paths)
    assert np.array_equal(t.image, s.image) and np.array_equal(t.labels, s.labels) and t.name == 'x'
    if not picture: assert t.spacing == pytest.approx(s.spacing) and (t.spacing_known == s.spacing_known or not nifti)


@pytest.mark.parametrize('dtype', [np.float32, np.int16])
def test_nifti_comes_back_identical(tmp_path, dtype):
    affine = np.array([[-.9181, .3967, -5.0473, 28.7592], [-.9038, -.3452, 5.2869, 199.666], [-.0443, -1.177, -3.2518, 111.184], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(VOLUME.astype(dtype), affine), tmp_path/'a.nii.gz')
    a = load(tmp_path/'a.nii.gz')
    b = load(save(a, tmp_path/'b.nii.gz')[0])
    assert np.array_equal(a.image, b.image) and np.array_equal(a.affine, b.affine) and a.spacing == b.spacing


def test_failed_save_leaves_nothing(tmp_path):
    s = Sample(GREY, np.full((12, 16), 70000))  # the image fits into a PNG, the labels do not
    with pytest.raises(ValueError, match='a.png.*PNG'): save(s, tmp_path/'a.png')
    assert not list(tmp_path.iterdir())
    save(Sample(GREY), tmp_path/'a.png')
    before = (tmp_path/'a.png').read_bytes()
    with pytest.raises(ValueError): save(s.replace(image=GREY*0), tmp_path/'a.png')
    assert (tmp_path/'a.png').read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    for bad in (GREY - .5, GREY*1000., -1.*GREY):
        with pytest.raises(ValueError, match='.tif'): save(Sample(bad), tmp_path/'b.png')
    with pytest.raises(FileNotFoundError, match='no folder nowhere'): save(s, tmp_path/'nowhere'/'a.nii')
    for name in ('a.dcm', 'a', 'a.mhd', 'a.jpg'):
        with pytest.raises(ValueError, match=f'{name}: cannot be saved'): save(s, tmp_path/name)
    assert len(list(tmp_path.iterdir())) == 1


def test_corrupt_gzip(tmp_path):
    nib.save(nib.Nifti1Image(VOLUME, AFFINE), tmp_path/'a.nii')
    content = (tmp_path/'a.nii').read_bytes()
    (tmp_path/'a.nii.gz').write_bytes(gzip.compress(content[:-100]))
    error('a.nii.gz: cannot be read', load, tmp_path/'a.nii.gz')
    packed = bytearray(gzip.compress(content))
    for k in range(len(packed) - 900, len(packed), 100):  # one bit is wrong
        packed[k] ^= 4
        (tmp_path/'a.nii.gz').write_bytes(packed)
        error('a.nii.gz: cannot be read', load, tmp_path/'a.nii.gz')
        packed[k] ^= 4


def test_tiffs_that_readers_reduce_are_exact_or_refused(tmp_path):
    tifffile = importlib.import_module('tifffile')
    rgb = np.random.default_rng(2).integers(0, 65536, (20, 32, 3)).astype(np.uint16)
    for name, a, kw, exact in [('tiled', rgb[..., 0], dict(tile=(16, 16)), True), ('u32', rgb[..., 0].astype(np.uint32) << 16, {}, True),
                               ('rgb', rgb, dict(photometric='rgb'), True), ('big', rgb, dict(photometric='rgb', bigtiff=True), True),
                               ('planes', np.moveaxis(rgb, -1, 0), dict(photometric='rgb', planarconfig='separate'), False),
                               ('tiledrgb', rgb, dict(photometric='rgb', tile=(16, 16)), False),
                               ('five', np.dstack([rgb, rgb])[..., :5], dict(photometric='minisblack', planarconfig='contig'), False),
                               ('double', rgb[..., 0]/7, {}, False), ('pages', np.stack([rgb[..., 0]]*2), dict(photometric='minisblack'), False)]:
        tifffile.imwrite(tmp_path/f'{name}.tif', a, **kw)
        if exact: assert np.array_equal(load(tmp_path/f'{name}.tif').image, (np.moveaxis(a, -1, 0) if a.ndim == 3 else a[None]).astype(np.float32)), name
        else: error(f'{name}.tif: cannot be read', load, tmp_path/f'{name}.tif')


def test_fastai():
    core = importlib.import_module('fastai.vision.core')
    from fastai.torch_core import TensorImage
    s = as_sample(core.PILImageBW.create(GREY), core.PILMask.create((GREY > 9).astype(np.uint8)))
    assert np.array_equal(s.image[0], GREY) and np.array_equal(s.labels, GREY > 9)
    t = TensorImage(torch.rand(3, 8, 9))
    assert type(as_sample(t).image) is np.ndarray and as_sample(t).image.shape == (3, 8, 9)
    with pytest.raises(ValueError, match='batch'): as_sample(t[None])


def test_torchio():
    tio = importlib.import_module('torchio')
    x = torch.as_tensor(VOLUME)[None]
    subject = tio.Subject(t1=tio.ScalarImage(tensor=x, affine=AFFINE), t2=tio.ScalarImage(tensor=2*x, affine=AFFINE),
                          seg=tio.LabelMap(tensor=(x > 100).to(torch.uint8), affine=AFFINE))
    s = as_sample(subject)
    assert np.array_equal(s.image, np.stack([VOLUME, 2*VOLUME])) and np.array_equal(s.labels, VOLUME > 100) and np.array_equal(s.affine, AFFINE)
    assert as_sample(subject.t1, subject.seg).labels.any() and as_sample(VOLUME[None], subject).labels.any()
    subject.add_image(tio.ScalarImage(tensor=x[:, :4], affine=AFFINE), 'small')
    with pytest.raises(ValueError, match='small'): as_sample(subject)
