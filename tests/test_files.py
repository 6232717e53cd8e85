"What is in the file is what is measured: geometry, grey values, masks, cohorts, and errors whose advice works."
import gzip
import struct
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from misas.data.cohort import cohort
from misas.data.folders import folder_cases
from misas.data.io import as_sample, load, save
from misas.data.sample import Sample, voxel_size
from misas.metrics.masks import surface_distance, volume
from misas.metrics.scores import score

GREY = np.random.default_rng(0).integers(0, 256, (12, 16)).astype(np.uint8)
MASK = np.zeros((12, 16), np.uint8)
MASK[3:8, 4:12] = 1


def nifti(path, values, affine, unit='mm', sform=1, qform=0):
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def silently(f, *args, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return f(*args, **kw)


# ---- geometry ----

@pytest.mark.parametrize('unit, mm', [('micron', .001), ('meter', 1000), ('mm', 1)])
def test_units_of_nifti(tmp_path, unit, mm):
    affine = np.diag([.4, .5, .6, 1])/mm
    affine[:3, 3] = np.array([1, -2, 3])/mm
    for values, want in ((np.zeros((5, 6, 7), np.uint8), (.4, .5, .6)), (np.zeros((5, 6), np.uint8), (.5, .4))):
        s = silently(load, nifti(tmp_path/'a.nii', values, affine, unit))
        assert np.allclose(s.spacing, want) and s.spacing_known
        if s.ndim == 3: assert np.allclose(s.affine[:3, 3], (1, -2, 3), atol=1e-5)
    in_memory = as_sample(nib.load(tmp_path/'a.nii'))
    assert np.allclose(in_memory.spacing, (.5, .4))


def test_a_view_that_no_patient_has_is_pointed_out(tmp_path):
    for mm in (400, .0004):
        path = nifti(tmp_path/'a.nii', np.zeros((10, 10, 10), np.uint8), np.diag([mm, mm, mm, 1]), 'unknown')
        with pytest.warns(UserWarning, match='a.nii: its header names no unit'): load(path)
    silently(load, nifti(tmp_path/'a.nii', np.zeros((10, 10, 10), np.uint8), np.diag([2, 2, 2, 1]), 'unknown'))


def test_two_places(tmp_path):
    both = nib.Nifti1Image(np.zeros((8, 9, 10), np.uint8), None)
    both.set_sform(np.diag([2., 2, 2, 1]), 1)
    both.set_qform(np.diag([1., 1, -1, 1]), 1)
    nib.save(both, tmp_path/'both.nii')
    with pytest.warns(UserWarning, match='sform with voxels of 2 x 2 x 2 mm.*qform with 1 x 1 x 1 mm'):
        assert load(tmp_path/'both.nii').spacing == (2, 2, 2)
    nib.save(nib.Nifti1Image(np.zeros((8, 9, 10), np.uint8), np.diag([2., 2, 2, 1])), tmp_path/'one.nii')
    silently(load, tmp_path/'one.nii')
    content = bytearray((tmp_path/'one.nii').read_bytes())
    content[80:92] = struct.pack('<3f', 3, 3, 3)
    (tmp_path/'one.nii').write_bytes(bytes(content))
    with pytest.warns(UserWarning, match='3 x 3 x 3 mm by its pixdim'): assert load(tmp_path/'one.nii').spacing == (2, 2, 2)


@pytest.mark.parametrize('pixdim, want', [
    ((0, 0, 0), None), ((2, 0, 2), None), ((-2, 2, 3), (2, 2, 3)), ((2, 2, 3), (2, 2, 3)), ((1, 1, 1), None)])
def test_headers_with_sizes_only(tmp_path, pixdim, want):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None), tmp_path/'a.nii')
    content = bytearray((tmp_path/'a.nii').read_bytes())
    content[80:92] = struct.pack('<3f', *pixdim)
    (tmp_path/'a.nii').write_bytes(bytes(content))
    if 0 in pixdim:
        with pytest.warns(UserWarning, match='size 0'): s = load(tmp_path/'a.nii')
    else: s = load(tmp_path/'a.nii')
    assert s.affine is None and s.spacing_known == (want is not None) and (want is None or s.spacing == want)
    with gzip.open(tmp_path/'a.nii.gz', 'wb') as file: file.write(bytes(content))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert load(tmp_path/'a.nii.gz').spacing == s.spacing


def nrrd(path, *lines, shape=(4, 5, 6)):
    head = ['NRRD0004', 'type: uchar', f'dimension: {len(shape)}', f'sizes: {" ".join(map(str, shape))}', 'encoding: raw']
    path.write_bytes('\n'.join([*head, *lines, '', '']).encode() + bytes(int(np.prod(shape))))
    return path


def test_nrrd(tmp_path):
    directions = 'space directions: (400,0,0) (0,500,0) (0,0,600)'
    for unit, mm in (('um', .001), ('microns', .001), ('mm', 1), ('m', 1000), ('cm', 10), ('', 1)):
        path = nrrd(tmp_path/'a.nrrd', 'space: left-posterior-superior', directions,
                    'space units: ' + ' '.join([f'"{unit}"']*3), 'space origin: (100,200,300)')
        s = load(path)
        assert np.allclose(s.spacing, np.array((400, 500, 600))*mm) and np.allclose(s.affine[:3, 3], np.array((-100, -200, 300))*mm)
    two = nrrd(tmp_path/'b.nrrd', 'spacings: 400 500', 'units: "um" "um"', shape=(4, 5))
    assert np.allclose(load(two).spacing, (.5, .4))
    ras = load(nrrd(tmp_path/'c.nrrd', 'space: right-anterior-superior', 'space directions: (2,0,0) (0,3,0) (0,0,4)'))
    assert np.allclose(ras.affine[:3, :3], np.diag([2, 3, 4]))
    assert not load(nrrd(tmp_path/'d.nrrd')).spacing_known and not load(nrrd(tmp_path/'e.nrrd', shape=(4, 5))).spacing_known
    with pytest.raises(ValueError, match='furlong'):
        load(nrrd(tmp_path/'f.nrrd', 'spacings: 1 1 1', 'units: "furlong" "furlong" "furlong"'))


def test_metaimage(tmp_path):
    head = 'ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 4 5 6\nElementType = MET_UCHAR\n'
    for more, want in (('', None), ('ElementSpacing = 2 3 4\n', (2, 3, 4))):
        (tmp_path/'a.mha').write_bytes((head + more + 'ElementDataFile = LOCAL\n').encode() + bytes(120))
        s = load(tmp_path/'a.mha')
        assert s.spacing_known == (want is not None) and (want is None or s.spacing == want)


def random_affine(rng, shear):
    "Voxels of random size, turned, flipped, with exchanged axes, and sheared."
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    steps = np.diag(rng.uniform(.5, 3, 3)) @ np.eye(3)[rng.permutation(3)]
    skew = np.eye(3)
    if shear: skew[np.triu_indices(3, 1)] = rng.uniform(-.8, .8, 3)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ skew @ steps, rng.normal(size=3)*50
    return affine


@pytest.mark.parametrize('suffix', ['.nii.gz', '.nrrd', '.mha'])
@pytest.mark.parametrize('shear', [False, True])
def test_random_affines_keep_volume_and_distance(tmp_path, suffix, shear):
    rng = np.random.default_rng(len(suffix) + 10*shear)
    for _ in range(4):
        affine = random_affine(rng, shear)
        a, b = (rng.random((2, 7, 8, 6)) < .2)
        one, other = (load(save(Sample(m[None], affine=affine), tmp_path/f'{i}{suffix}')[0]) for i, m in enumerate((a, b)))
        assert np.allclose(one.affine, affine, atol=1e-3)
        mm = abs(np.linalg.det(affine[:3, :3]))
        assert np.isclose(volume(a, one.spacing), a.sum()*mm/1000, rtol=1e-3) and np.isclose(voxel_size(one.spacing), mm, rtol=1e-3)
        from scipy.ndimage import binary_erosion
        from scipy.spatial.distance import cdist
        apart = cdist(*(np.argwhere(m & ~binary_erosion(m)) @ affine[:3, :3].T for m in (a, b)))
        near = apart.min(1), apart.min(0)
        assert np.isclose(surface_distance(a, b, one.spacing), np.concatenate(near).mean(), rtol=1e-3)
        assert np.isclose(surface_distance(a, b, one.spacing, 95), max(np.percentile(o, 95) for o in near), rtol=1e-3)
        frame = score(a, b, ('volume', 'assd'), n_classes=2, spacing=one.spacing)
        assert np.isclose(frame.score[0], a.sum()*mm/1000, rtol=1e-3)
        part = one.crop((1, 6), slice(None, None, 2), slice(None, None, -1))
        at = np.array([2, 1, 3, 1])
        assert np.allclose(part.affine @ at, affine @ [1 + 2, 2, 6 - 1 - 3, 1], atol=1e-3)
        assert part.image[0, 2, 1, 3] == one.image[0, 3, 2, 2]
        moved = one.replace(affine=None)  # what is left is the size of voxels, and their shear
        assert np.isclose(voxel_size(moved.spacing), mm, rtol=1e-3)


def test_a_metric_of_the_user_is_not_given_sheared_voxels():
    from misas.metrics.metric import Metric
    affine = np.eye(4)
    affine[0, 2] = .5
    s = Sample(np.zeros((1, 4, 4, 4)), np.ones((4, 4, 4), int), affine=affine)
    mine = Metric('mine', lambda p, t, spacing: 0., needs='spacing')
    with pytest.raises(ValueError, match='mine.*sheared'): score(s.labels, s.labels, mine, n_classes=2, spacing=s.spacing)
    found = score(s.labels, s.labels, 'hausdorff95', n_classes=2, spacing=s.spacing)
    assert found.score[0] == 0
    with pytest.raises(ValueError, match='no volume'): Sample(np.zeros((1, 4, 4, 4)), affine=np.array(
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.]]))


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif', '.webp'])
@pytest.mark.parametrize('turn', range(1, 9))
def test_exif(tmp_path, suffix, turn):
    stored = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose, 6: np.rot90,
              7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}[turn]
    shown = np.zeros((24, 40), np.uint8)
    shown[2:9, 5:30] = 200
    exif = Image.Exif()
    exif[0x0112] = turn
    how = dict(quality=98) if suffix == '.jpg' else dict(lossless=True) if suffix == '.webp' else {}
    Image.fromarray(np.ascontiguousarray(stored(shown))).save(tmp_path/f'a{suffix}', exif=exif, **how)
    s = load(tmp_path/f'a{suffix}')
    assert np.abs(s.image[0] - shown).max() < 20
    if suffix == '.jpg': return
    assert np.array_equal(load(tmp_path/f'a{suffix}', tmp_path/f'a{suffix}').labels, shown)
    if suffix == '.tif':
        for values, kind in ((shown > 0, 'bit'), (shown.astype(np.uint16)*200, '16'), (shown.astype(np.float32)/7, 'float')):
            for compression in (None, 'tiff_lzw'):
                Image.fromarray(np.ascontiguousarray(stored(values))).save(tmp_path/'b.tif', exif=exif, compression=compression)
                assert np.array_equal(load(tmp_path/'b.tif').image[0], values), kind
    elif suffix == '.png':
        with Image.open(tmp_path/'a.png') as im: assert np.array_equal(as_sample(im).image[0], shown)


def test_exif_of_16_bit_colours(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (12, 16, 3)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(np.rot90(values).copy(), isVector=True), tmp_path/'a.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    data, text = (tmp_path/'a.png').read_bytes(), exif.tobytes()[6:]
    chunk = struct.pack('>I', len(text)) + b'eXIf' + text + struct.pack('>I', zlib.crc32(b'eXIf' + text))
    (tmp_path/'a.png').write_bytes(data[:33] + chunk + data[33:])
    assert np.array_equal(load(tmp_path/'a.png').image, np.moveaxis(values, -1, 0))


def test_resolution_of_pictures_is_not_used(tmp_path):
    for suffix in ('.tif', '.png', '.jpg'):
        Image.fromarray(GREY).save(tmp_path/f'a{suffix}', dpi=(72, 72))
        assert not load(tmp_path/f'a{suffix}').spacing_known


def test_2d_pixels_of_different_size(tmp_path):
    a = nifti(tmp_path/'a.nii', GREY.T, np.diag([.5, .5, 1, 1]))
    b = nifti(tmp_path/'b.nii', MASK.T, np.diag([1., 1, 1, 1]))
    with pytest.raises(ValueError, match='b.nii has voxels of 1 x 1 mm, a.nii of 0.5 x 0.5 mm'): load(a, b)
    assert load(a, b, spacing=.5).labels.sum() == 40  # the advice
    c = nrrd(tmp_path/'c.nrrd', 'spacings: 2 2', shape=(16, 12))
    with pytest.raises(ValueError, match='2 x 2 mm'): load(a, c)
    assert load(a, MASK).spacing == (.5, .5) and load(a, nifti(tmp_path/'d.nii', MASK.T, np.diag([.5, .5, 1, 1]))).labels.any()


def test_metatensors(tmp_path):
    import monai
    values = np.random.default_rng(0).random((12, 14, 16)).astype(np.float32)
    affine = np.diag([-1.5, 1.5, 3, 1])
    nifti(tmp_path/'i.nii.gz', values, affine)
    mask = nib.Nifti1Image((values > .5).astype(np.uint8), affine)
    plain = monai.transforms.LoadImage(ensure_channel_first=True)(tmp_path/'i.nii.gz')
    s = as_sample(plain, mask)
    assert s.spacing == (1.5, 1.5, 3) and ((s.image[0] > .5) == (s.labels > 0)).all()
    assert as_sample(plain[0], mask).shape == s.shape  # without a channel axis
    turned = monai.transforms.Flip(0)(plain)
    with pytest.raises(ValueError, match='elsewhere'): as_sample(turned, mask)
    assert as_sample(turned, turned > .5).labels.any()  # moved alike
    cropped = monai.transforms.SpatialCrop(roi_start=(2, 3, 4), roi_end=(8, 9, 12))(plain)
    assert np.allclose(as_sample(cropped).affine, cropped.affine)  # (where fastai is loaded, MONAI has lost its own)
    assert np.allclose(as_sample(cropped, affine=s.crop((2, 8), (3, 9), (4, 12)).affine).affine[:3, 3], [-3, 4.5, 12])
    assert not as_sample(monai.data.MetaTensor(torch.zeros(1, 4, 5, 6))).spacing_known
    Image.fromarray(GREY).save(tmp_path/'a.png')
    flat = monai.transforms.LoadImage(ensure_channel_first=True)(tmp_path/'a.png')
    assert np.array_equal(as_sample(flat).image, load(tmp_path/'a.png').image)
    with pytest.raises(ValueError, match='moved'): as_sample(monai.transforms.Flip(0)(flat), Image.fromarray(MASK))


def test_torchio_and_simpleitk_that_lie_elsewhere():
    import torchio
    image = torchio.ScalarImage(tensor=torch.rand(1, 6, 7, 8), affine=np.diag([2., 2, 3, 1]))
    mask = torchio.LabelMap(tensor=torch.ones(1, 6, 7, 8), affine=np.diag([2., 2, 5, 1]))
    with pytest.raises(ValueError, match='elsewhere'): as_sample(torchio.Subject(a=image, m=mask))
    assert as_sample(torchio.Subject(a=image)).spacing == (2, 2, 3)
    im = sitk.GetImageFromArray(np.zeros((8, 7, 6), np.float32))
    im.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    im.SetSpacing((2, 3, 4))
    assert as_sample(im).spacing == (2, 3, 4)
    with pytest.raises(ValueError, match='elsewhere'): as_sample(im, sitk.GetImageFromArray(np.zeros((8, 7, 6), np.uint8)))


# ---- grey values and masks ----

def test_white_is_0(tmp_path):
    import tifffile
    Image.fromarray(GREY).save(tmp_path/'i.png')
    for kind in (bool, np.uint8, np.uint16, np.int16, np.float32, '>u2'):
        tifffile.imwrite(tmp_path/'m.tif', MASK.astype(kind), photometric='miniswhite')
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            assert np.array_equal(load(tmp_path/'i.png', tmp_path/'m.tif').labels, MASK), kind
        assert bool(told) == (kind is bool)
        with pytest.warns(UserWarning, match='MinIsWhite'): assert np.array_equal(load(tmp_path/'m.tif').image[0], MASK)
    tifffile.imwrite(tmp_path/'m.tif', MASK > 0)
    with pytest.warns(UserWarning, match='label_map={0: 1, 1: 0}'):  # the advice
        assert (load(tmp_path/'i.png', tmp_path/'m.tif', label_map={0: 1, 1: 0}).labels == 1 - MASK).all()
    with pytest.warns(UserWarning, match='MinIsWhite'): tiff = Image.open(tmp_path/'m.tif'); load(tmp_path/'m.tif')
    assert np.array_equal(as_sample(tiff).image[0], MASK)
    Image.fromarray(MASK > 0).save(tmp_path/'g4.tif', compression='group4')
    assert np.array_equal(load(tmp_path/'i.png', tmp_path/'g4.tif').labels, MASK)


def small_png(path, values, bits):
    "A grey PNG with 1, 2 or 4 bits."
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    rows = b''
    for row in values:
        text = ''.join(format(int(v), f'0{bits}b') for v in row)
        text += '0'*(-len(text) % 8)
        rows += b'\0' + bytes(int(text[k:k + 8], 2) for k in range(0, len(text), 8))
    size = struct.pack('>IIBBBBB', values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', size) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))
    return path


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_few_bits(tmp_path, bits):
    values = GREY % 2**bits
    path = small_png(tmp_path/'a.png', values, bits)
    assert np.array_equal(load(path).image[0], values) and np.array_equal(load(path, path).labels, values)


def write_dicom(path, pixels, kind='MONOCHROME2', **tags):
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
    ds.set_pixel_data(pixels, kind, tags.pop('BitsStored', pixels.dtype.itemsize*8))
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(path, enforce_file_format=True)
    return path


PLACE = dict(ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[2, 3], SeriesInstanceUID='1.2.3')


def test_negatives_alone_and_in_a_series(tmp_path):
    (tmp_path/'s').mkdir()
    slices = [(GREY.astype(np.uint16)*k + 7) for k in (1, 3, 2)]
    for z, pixels in enumerate(slices): write_dicom(
        tmp_path/'s'/f'{z}.dcm', pixels, 'MONOCHROME1', BitsStored=12, ImagePositionPatient=[0, 0, 5*z], **PLACE)
    series = load(tmp_path/'s')
    for z, pixels in enumerate(slices):
        alone = load(tmp_path/'s'/f'{z}.dcm')
        assert np.array_equal(alone.image[0], 4095. - pixels) and np.array_equal(series.image[0, ..., z], alone.image[0].T)
        narrow = load(tmp_path/'s'/f'{z}.dcm', window=(300, 200))
        assert np.array_equal(load(tmp_path/'s', window=(300, 200)).image[0, ..., z], narrow.image[0].T)
    pet = write_dicom(tmp_path/'pet.dcm', GREY, 'MONOCHROME1', RescaleSlope=2, Units='BQML')
    assert np.array_equal(load(pet).image[0], GREY*2.)  # measured, however it is shown
    write_dicom(tmp_path/'s'/'1.dcm', slices[1], BitsStored=12, ImagePositionPatient=[0, 0, 5], **PLACE)
    with pytest.raises(ValueError, match='negative'): load(tmp_path/'s')


@pytest.mark.parametrize('pad, limit', [(-2000, None), (-2000, -1990), (63536, None)])
def test_padding(tmp_path, pad, limit):
    stored = GREY.astype(np.int16)*3
    stored[:, :4] = -2000
    tags = dict(RescaleIntercept=-1024, RescaleSlope=1, **PLACE)
    (tmp_path/'s').mkdir()
    for z in range(2):
        path = write_dicom(tmp_path/'s'/f'{z}.dcm', stored, ImagePositionPatient=[0, 0, 5*z], **tags)
        ds = pydicom.dcmread(path)
        ds.add_new('PixelPaddingValue', 'US' if pad > 0 else 'SS', pad)
        if limit: ds.add_new('PixelPaddingRangeLimit', 'SS', limit)
        ds.save_as(path)
    alone, series = load(path), load(tmp_path/'s')
    assert (alone.valid == (np.arange(16) >= 4)).all() and (series.valid[..., 0] == alone.valid.T).all()
    assert alone.image.min() == -3024  # as in the file
    from misas.transforms.intensity import Noise, channel_range
    low, high = channel_range(alone.image, alone.valid)
    assert low >= -1024
    assert Noise(seed=0)(alone, .01).image[0, :, 4:].std() < 400
    given = load(path, valid=np.ones((12, 16)))
    assert given.valid.all()


def test_spacing_at_the_detector(tmp_path):
    with pytest.warns(UserWarning, match='ImagerPixelSpacing, 0.2 x 0.2 mm'):
        assert not load(write_dicom(tmp_path/'x.dcm', GREY, ImagerPixelSpacing=[.2, .2])).spacing_known
    path = write_dicom(tmp_path/'y.dcm', GREY, ImagerPixelSpacing=[.2, .2], PixelSpacing=[.15, .15])
    assert silently(load, path).spacing == (.15, .15)


def test_masks_that_were_blurred(tmp_path):
    Image.fromarray(GREY).resize((64, 48)).save(tmp_path/'i.png')
    disc = ((np.hypot(*np.indices((48, 64)) - np.reshape((24, 30), (2, 1, 1))) < 15)*255).astype(np.uint8)
    soft = Image.fromarray(disc).resize((256, 192)).resize((64, 48), Image.BILINEAR)
    for name, image in (('m.jpg', Image.fromarray(disc)), ('m.png', soft), ('rgb.jpg', Image.fromarray(np.dstack([disc]*3)))):
        image.save(tmp_path/name)
        with pytest.raises(ValueError, match=name) as told: load(tmp_path/'i.png', tmp_path/name)
        advice = str(told.value).partition('labels=')[2].partition(',')[0]
        s = load(tmp_path/'i.png', eval(advice))  # followed word by word
        assert abs(int(s.labels.sum()) - int((disc > 0).sum())) < 60 and s.labels.max() == 1
    with pytest.raises(ValueError, match='smoothed'): as_sample(np.zeros((48, 64)), np.asarray(soft))
    Image.open(tmp_path/'m.jpg').save(tmp_path/'was.png')
    with pytest.raises(ValueError, match='smoothed'): load(tmp_path/'i.png', tmp_path/'was.png')
    Image.fromarray(disc).save(tmp_path/'m.tif', compression='jpeg')
    with pytest.raises(ValueError, match='JPEG'): load(tmp_path/'i.png', tmp_path/'m.tif')
    Image.fromarray(np.full((48, 64), 0, np.uint8)).save(tmp_path/'flat.jpg')
    assert not load(tmp_path/'i.png', tmp_path/'flat.jpg').labels.any()  # nothing can be wrong with it
    with pytest.raises(ValueError, match='JPEG'): as_sample(np.zeros((48, 64)), Image.open(tmp_path/'m.jpg'))


def test_ignore(tmp_path):
    mask = MASK.copy()
    mask[0], mask[1] = 255, 254
    Image.fromarray(mask).save(tmp_path/'m.png')
    Image.fromarray(GREY).save(tmp_path/'i.png')
    s = load(tmp_path/'i.png', tmp_path/'m.png', ignore=(254, 255), classes=('background', 'LV'))
    assert np.array_equal(s.labels, MASK) and (s.valid == (np.arange(12) > 1)[:, None]).all()
    assert as_sample(GREY, np.where(mask > 1, -1, mask.astype(int)), ignore=-1).valid.sum() == 10*16
    assert as_sample(s, mask, ignore=255, label_map={1: 2, 254: 1}, classes=None).labels.max() == 2
    (tmp_path/'c.csv').write_text('image,labels,ignore\ni.png,m.png,"(254, 255)"\n')
    [case] = cohort(tmp_path/'c.csv')
    assert (case.sample().valid == s.valid).all()
    [case] = cohort([dict(image=tmp_path/'i.png', labels=tmp_path/'m.png', ignore=[254, 255])])
    assert (case.sample().valid == s.valid).all()
    with pytest.raises(ValueError, match='ignore'): load(tmp_path/'i.png', [tmp_path/'m.png']*2, ignore=255)
    given = load(tmp_path/'i.png', tmp_path/'m.png', ignore=(254, 255), valid=np.arange(16)[None].repeat(12, 0) > 3)
    assert given.valid.sum() == 10*12


@pytest.mark.parametrize('slope, stored', [(.99999, 1), (1/85, 85), (1/255, 255), (2., .5)])
def test_slopes_of_labels(tmp_path, slope, stored):
    labels = np.random.default_rng(0).integers(0, 4 if stored != 255 else 2, (5, 6, 7))
    kind = np.float32 if stored == .5 else np.uint8
    image = nib.Nifti1Image((labels*stored).astype(kind), np.eye(4))
    image.header.set_slope_inter(slope, 0)
    nib.save(image, tmp_path/'m.nii')
    content = bytearray((tmp_path/'m.nii').read_bytes())
    content[112:120] = struct.pack('<2f', slope, 0)  # nibabel scales while it saves
    offset = int(nib.load(tmp_path/'m.nii').dataobj.offset)
    content[offset:] = (labels*stored).astype(kind).tobytes(order='F')
    (tmp_path/'m.nii').write_bytes(bytes(content))
    nifti(tmp_path/'i.nii', labels.astype(np.float32), np.eye(4))
    assert np.array_equal(load(tmp_path/'i.nii', tmp_path/'m.nii').labels, labels)


def test_a_slope_that_is_none_of_rounding(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    nifti(tmp_path/'m.nii', labels, np.eye(4))
    content = bytearray((tmp_path/'m.nii').read_bytes())
    content[112:120] = struct.pack('<2f', .3, 0)
    (tmp_path/'m.nii').write_bytes(bytes(content))
    nifti(tmp_path/'i.nii', labels.astype(np.float32), np.eye(4))
    with pytest.raises(ValueError, match='m.nii.* by 0.3') as told: load(tmp_path/'i.nii', tmp_path/'m.nii')
    nibabel = nib  # what the advice calls it
    advice = str(told.value).partition('ones are ')[2]
    assert nibabel and np.array_equal(load(tmp_path/'i.nii', eval(advice)).labels, labels)


def test_nan(tmp_path):
    values = GREY.T.astype(np.float32).copy()
    values[:3] = np.nan
    path = nifti(tmp_path/'a.nii', values, np.eye(4))
    with pytest.raises(ValueError, match='nan=0'): load(path)
    s = load(path, nan=0)
    assert (s.valid == (np.arange(16) > 2)).all() and s.image[0, :, :3].max() == 0
    assert (load([path, path], nan=-5).image[:, :, 0] == -5).all() and as_sample(values, nan=0).valid is not None
    assert load(path, nan=0, valid=np.ones((12, 16))).valid.sum() == 13*12
    with pytest.raises(ValueError, match='infinite'): load(nifti(tmp_path/'b.nii', values*0 + np.inf, np.eye(4)), nan=0)


# ---- cohorts ----

def picture(path, values=GREY):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.nii' or path.name.endswith('.gz'): nib.save(nib.Nifti1Image(values.T, np.eye(4)), path)
    else: Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize('image, mask', [
    ('images/a.png', 'masks/a.png'), ('images/a.png', 'masks/a_mask.png'), ('images/a.png', 'labels/a_seg.tif'),
    ('Images/a.jpg', 'Masks/a.png'), ('imgs/a.png', 'segmentations/a-label.png'), ('image/a_image.png', 'mask/a_mask.png'),
    ('imagesTr/a_0000.nii.gz', 'labelsTr/a.nii.gz'), ('imagesTr/a_0000.png', 'labelsTr/a.png'), ('a.png', 'a_mask.png'),
    ('a.png', 'a-mask.png'), ('a.nii.gz', 'a_labels.nii.gz'), ('a.nii.gz', 'a_seg.nii.gz'), ('a.nii.gz', 'a-label.nii'),
    ('a_image.png', 'a_mask.png'), ('a.png', 'mask_a.png'), ('img_a.png', 'mask_a.png'), ('a.png', 'a_gt.png'),
    ('a.png', 'a.mask.png'), ('a_0000.nii', 'a_seg.nii'), ('a.png', 'a_Segmentation.png'), ('a.png', 'a_groundtruth.gif')])
def test_layouts(tmp_path, image, mask):
    for name in ('a', 'b'):
        picture(tmp_path/image.replace('a.', f'{name}.').replace('a_0', f'{name}_0').replace('a_im', f'{name}_im'))
        where, _, file = mask.rpartition('/')
        picture(tmp_path/where/file.replace('a', name, 1) if file[0] == 'a' else tmp_path/where/file.replace('_a.', f'_{name}.'), MASK)
    cases = list(cohort(tmp_path))
    assert len(cases) == 2 and all(np.array_equal(case.sample().labels, MASK) for case in cases), [o.name for o in cases]


@pytest.mark.parametrize('names, words', [
    (['a_t1.nii', 'a_t2.nii', 'a_seg.nii'], ['a_seg.nii', 'a_t1.nii', '.csv']),
    (['a.png', 'b_mask.png'], ['b_mask.png', 'no image b']),
    (['a.png', 'b.png', 'a_mask.png'], ['b.png', 'no mask']),
    (['images/a.png', 'masks/b.png'], ['a.png', 'no mask']),
    (['images/a.png', 'masks/a.png', 'labels/a.png'], ['masks', 'labels', 'dict(image=']),
    (['imagesTr/a_0000.nii', 'labelsTr/a.nii', 'imagesTs/b_0000.nii', 'labelsTs/b.nii'], ['imagesTr', 'labelsTs']),
    (['imagesTr/a_0000.nii', 'imagesTr/a_0001.nii', 'imagesTr/b_0000.nii', 'labelsTr/a.nii', 'labelsTr/b.nii'], ['b', '_0001']),
    (['p1/image.nii', 'p1/mask.nii'], ['deeper', 'p1/image.nii']),
    (['sub-01/anat/sub-01_T1w.nii'], ['deeper']),
    (['dataset_description.json', 'sub-01/anat/sub-01_T1w.nii', 'derivatives/x/sub-01/anat/sub-01_dseg.nii'], ['BIDS', '.csv']),
    (['train/images/a.png', 'train/masks/a.png'], ['deeper', 'train/images/a.png'])])
def test_questions_about_folders(tmp_path, names, words):
    for name in names:
        if name.endswith('.json'): (tmp_path/name).write_text('{}')
        else: picture(tmp_path/name)
    with pytest.raises((ValueError, FileNotFoundError)) as told: list(cohort(tmp_path))
    assert all(word in str(told.value) for word in words) and '\n' not in str(told.value), told.value


def test_the_question_about_two_folders_has_an_answer(tmp_path):
    for name in ('images/a.png', 'masks/a.png', 'labels/a.png'): picture(tmp_path/name, MASK)
    with pytest.raises(ValueError) as told: list(cohort(tmp_path))
    advice = str(told.value).partition('samples=')[2]
    [case] = cohort({**eval(advice), 'label_map': {1: 2}})
    assert case.sample().labels.max() == 2


def test_channels_of_nnunet(tmp_path):
    for name in ('a', 'b'):
        for k in range(3): picture(tmp_path/'imagesTr'/f'{name}_{k:04}.nii.gz', GREY + k)
        picture(tmp_path/'labelsTr'/f'{name}.nii.gz', MASK)
    picture(tmp_path/'imagesTs'/'c_0000.nii.gz')
    one, two = cohort(tmp_path)
    assert (one.name, two.name) == ('a', 'b') and one.sample().n_channels == 3 and one.sample().labels.any()
    assert (one.sample().image[2] == GREY + 2.).all() or GREY.max() > 253
    [test] = cohort(tmp_path/'imagesTs')
    assert test.name == 'c' and test.sample().labels is None
    for k in range(3): picture(tmp_path/'film'/f'frame_{k:04}.png')
    assert len(list(cohort(tmp_path/'film'))) == 3  # of no case


def test_what_save_writes_is_a_cohort(tmp_path):
    rng = np.random.default_rng(0)
    plain = Sample(rng.random((1, 8, 8, 4)), rng.integers(0, 3, (8, 8, 4)), spacing=(1, 2, 3), valid=rng.random((8, 8, 4)) < .9)
    both = plain.replace(labels=rng.random((2, 8, 8, 4)) < .5, classes=('ET', 'whole tumour'))
    for suffix in ('.nii.gz', '.nrrd', '.mha'):
        for kind, s in (('map', plain), ('masks', both)):
            folder = tmp_path/f'{kind}{suffix}'
            folder.mkdir()
            for name in ('p1', 'p2.x'): save(s, folder/f'{name}{suffix}')
            cases = list(cohort(folder))
            assert [o.name for o in cases] == ['p1', 'p2.x']
            for case in cases:
                back = case.sample()
                assert np.array_equal(back.labels, s.labels) and np.array_equal(back.valid, s.valid)
                assert back.spacing == s.spacing and (kind == 'map' or back.classes == s.classes)


@pytest.mark.parametrize('header, encoding', [
    ('image,labels', 'utf-8'), ('Image;Mask', 'utf-8'), ('image\tlabel', 'utf-8'), (' image , mask ', 'utf-8-sig'),
    ('Image File;Segmentation', 'utf-16'), ('image_path,mask_path', 'utf-8'), ('IMAGES,Ground Truth', 'utf-8-sig'),
    ('scan,seg', 'utf-16'), ('Image,Labels', 'utf-8')])
def test_manifests(tmp_path, header, encoding):
    picture(tmp_path/'ä 1.png')
    picture(tmp_path/'m.png', MASK)
    separator = next(o for o in ';\t,' if o in header)
    lines = [header + separator + 'Patient', separator.join(('ä 1.png', 'm.png', '007'))]
    (tmp_path/'c.csv').write_text('\n'.join(lines), encoding=encoding)
    [case] = cohort(tmp_path/'c.csv')
    assert np.array_equal(case.sample().labels, MASK) and case.info['patient'] == '007'


def test_tables(tmp_path):
    picture(tmp_path/'i.png')
    picture(tmp_path/'m.png', MASK)
    table = pd.DataFrame([dict(image=tmp_path/'i.png', mask=str(tmp_path/'m.png'), age=70, diagnosis='benign')])
    [case] = cohort(table)
    assert case.sample().labels.any() and case.info['age'] == 70
    for columns in (dict(contours=str(tmp_path/'m.png')), dict(mask=str(tmp_path/'m.png'), label=str(tmp_path/'m.png'))):
        with pytest.raises(ValueError, match=list(columns)[0]): cohort(pd.DataFrame([dict(image=str(tmp_path/'i.png'), **columns)]))
    [case] = cohort(pd.DataFrame([dict(image=str(tmp_path/'i.png'), label='benign')]))
    assert case.info['label'] == 'benign' and case.sample().labels is None
    with pytest.raises(FileNotFoundError, match='gone.png'): cohort(pd.DataFrame([dict(image='gone.png')]))
    with pytest.raises(ValueError, match='no column image'): cohort(pd.DataFrame([dict(picture='a.png')]))
    channels = f'{tmp_path/"i.png"};{tmp_path/"m.png"}'
    [case] = cohort(pd.DataFrame([dict(image=channels)]))
    assert case.sample().n_channels == 2


# ---- several frames, segmentations ----

def item(**tags):
    ds = pydicom.Dataset()
    for k, v in tags.items(): setattr(ds, k, v)
    return ds


def enhanced(path, frames, places, **tags):
    shared = item(PixelMeasuresSequence=[item(PixelSpacing=[2, 3])],
                  PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])])
    groups = [item(PlanePositionSequence=[item(ImagePositionPatient=[*at])]) for at in places]
    return write_dicom(path, np.stack(frames), NumberOfFrames=len(frames), SharedFunctionalGroupsSequence=[shared],
                       PerFrameFunctionalGroupsSequence=groups, **tags)


def test_several_frames(tmp_path):
    frames = [GREY + k for k in range(3)]
    (tmp_path/'f').mkdir()
    path = enhanced(tmp_path/'f'/'e.dcm', frames, [(0, 0, 10), (0, 0, 0), (0, 0, 5)])
    s = load(path)
    assert s.spacing == (3, 2, 5) and np.array_equal(s.image[0, ..., 0], frames[1].T)
    assert np.array_equal(load(tmp_path/'f').image, s.image)  # alone in a folder
    assert np.array_equal(load(path, frame=2).image[0], frames[2])
    write_dicom(tmp_path/'f'/'other.dcm', GREY, ImagePositionPatient=[0, 0, 0], **PLACE)
    with pytest.raises(ValueError, match='e.dcm has several frames'): load(tmp_path/'f')
    tilted = enhanced(tmp_path/'t.dcm', frames, [(0, 2*k, 5*k) for k in range(3)])  # a gantry
    assert np.isclose(voxel_size(load(tilted).spacing), 2*3*5)
    dose = write_dicom(tmp_path/'dose.dcm', np.stack(frames).astype(np.uint16), NumberOfFrames=3, DoseGridScaling=.5,
                       ImagePositionPatient=[0, 0, 7], GridFrameOffsetVector=[0, 4, 8], **PLACE)
    assert load(dose).spacing == (3, 2, 4) and load(dose).image.max() == .5*max(o.max() for o in frames)
    for name, places in (('cine', [(0, 0, 0)]*3), ('gap', [(0, 0, 0), (0, 0, 5), (0, 0, 20)])):
        with pytest.raises(ValueError, match='frame= from 0 to 2'): load(enhanced(tmp_path/f'{name}.dcm', frames, places))
        assert load(tmp_path/f'{name}.dcm', frame=1).shape == (12, 16)  # the advice


def write_seg(path, masks, places, numbers, names, world='1.2.9', **tags):
    groups = [item(PlanePositionSequence=[item(ImagePositionPatient=[*at])],
                   SegmentIdentificationSequence=[item(ReferencedSegmentNumber=k)]) for at, k in zip(places, numbers)]
    ds = item(SOPClassUID='1.2.840.10008.5.1.4.1.1.66.4', SOPInstanceUID=pydicom.uid.generate_uid(), Modality='SEG',
              SegmentationType='BINARY', FrameOfReferenceUID=world, SeriesInstanceUID='1.2.77',
              SegmentSequence=[item(SegmentNumber=k, SegmentLabel=name) for k, name in enumerate(names, 1)],
              SharedFunctionalGroupsSequence=[item(
                  PixelMeasuresSequence=[item(PixelSpacing=[2, 3])],
                  PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])])],
              PerFrameFunctionalGroupsSequence=groups, SamplesPerPixel=1, PhotometricInterpretation='MONOCHROME2',
              Rows=masks[0].shape[0], Columns=masks[0].shape[1], BitsAllocated=1, BitsStored=1, HighBit=0,
              PixelRepresentation=0, NumberOfFrames=len(masks))
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    bits = np.packbits(np.array(masks, np.uint8).ravel(), bitorder='little').tobytes()
    ds.PixelData = bits + bytes(len(bits) % 2)
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(path, enforce_file_format=True)
    return path


def test_segmentations(tmp_path):
    (tmp_path/'images'/'p1').mkdir(parents=True)
    (tmp_path/'labels').mkdir()
    for z in range(3): write_dicom(tmp_path/'images'/'p1'/f'{z}.dcm', GREY, ImagePositionPatient=[0, 0, 5*z],
                                   FrameOfReferenceUID='1.2.9', **PLACE)
    small = np.roll(MASK, 2, 1)
    seg = write_seg(tmp_path/'labels'/'p1.dcm', [MASK, small*(1 - MASK)], [(0, 0, 5), (0, 0, 10)], (1, 2), ('liver', 'lesion'))
    s = load(tmp_path/'images'/'p1', seg)
    assert s.classes == ('background', 'liver', 'lesion') and np.array_equal(s.labels[..., 1], MASK.T)
    assert np.array_equal(s.labels[..., 2], 2*(small*(1 - MASK)).T) and not s.labels[..., 0].any()
    [case] = cohort(tmp_path)
    assert np.array_equal(case.sample().labels, s.labels)
    assert np.array_equal(as_sample(load(tmp_path/'images'/'p1'), seg).labels, s.labels)
    slice_ = load(tmp_path/'images'/'p1'/'1.dcm', seg)
    assert np.array_equal(slice_.labels, MASK)
    renamed = load(tmp_path/'images'/'p1', seg, label_map={1: 1, 2: 1})
    assert renamed.labels.max() == 1 and renamed.classes is None
    (tmp_path/'images'/'p1'/'seg.dcm').write_bytes(seg.read_bytes())  # beside its series, as in an archive
    assert load(tmp_path/'images'/'p1').shape == s.shape
    both = write_seg(tmp_path/'both.dcm', [MASK, MASK], [(0, 0, 5)]*2, (1, 2), ('organ', 'part'))
    assert load(tmp_path/'images'/'p1', both).overlapping
    nii = nib.Nifti1Image(s.image[0], s.affine)
    assert np.array_equal(as_sample(nii, seg).labels, s.labels)  # any image that lies there
    with pytest.raises(ValueError, match='labels'): load(seg)
    with pytest.raises(ValueError, match='frame of reference'):
        load(tmp_path/'images'/'p1', write_seg(tmp_path/'x.dcm', [MASK], [(0, 0, 5)], (1,), ('a',), world='1.2.8'))
    with pytest.raises(ValueError, match='another grid'):
        load(tmp_path/'images'/'p1', write_seg(tmp_path/'x.dcm', [MASK], [(1, 0, 5)], (1,), ('a',)))
    with pytest.raises(ValueError, match='not known'): as_sample(GREY, seg)


# ---- the first hour ----

def test_0_and_255_says_what_to_write(tmp_path):
    picture(tmp_path/'i.png')
    for name in ('m.png', 'm.gif', 'm.tif'):
        picture(tmp_path/name, MASK*255)
        with pytest.raises(ValueError, match='label_map') as told: load(tmp_path/'i.png', tmp_path/name, classes=('background', 'LV'))
        advice = eval(str(told.value).partition('label_map=')[2].partition('}')[0] + '}')
        assert np.array_equal(load(tmp_path/'i.png', tmp_path/name, label_map=advice).labels, MASK)
    Image.fromarray(MASK*100).save(tmp_path/'three.gif')
    assert np.unique(load(tmp_path/'i.png', tmp_path/'three.gif').labels).tolist() == [0, 100]
    film = [Image.fromarray(MASK*k) for k in (50, 100)]
    film[0].save(tmp_path/'film.gif', save_all=True, append_images=film[1:])
    with pytest.raises(ValueError, match='page= from 0 to 1'): load(tmp_path/'film.gif')
    assert load(tmp_path/'film.gif', page=1, channels=0).image.max() == 100


def test_values_far_apart(tmp_path):
    mask = MASK.astype(np.uint16)*205
    mask[9, :4], mask[10, :4], mask[11, :3] = 420, 550, 850
    names = {205: 'myocardium', 420: 'LA', 550: 'RA', 850: 'PA'}
    with pytest.raises(ValueError) as told: as_sample(GREY, mask, classes=names)
    assert len(str(told.value)) < 300
    advice = dict(label_map={205: 1, 420: 2, 550: 3, 850: 4}, classes=('background', 'myocardium', 'LA', 'RA', 'PA'))
    assert all(f'{k}={v}' in str(told.value) for k, v in advice.items())
    assert as_sample(GREY, mask, **advice).labels.max() == 4
    assert len(repr(as_sample(GREY, mask))) < 200
    from misas.sweep.sensitivity import sensitivity
    from misas.transforms.intensity import Noise
    def net(x): return np.concatenate([x < 99, x >= 99], 1).astype(np.float32)
    with pytest.raises(ValueError) as told: sensitivity(net, as_sample(GREY, mask), Noise([.01]), progress=False)
    assert len(str(told.value)) < 300


def test_other_hurdles(tmp_path):
    rgb = tmp_path/'rgb.png'
    Image.fromarray(np.dstack([GREY]*3)).save(rgb)
    assert load(rgb, channels='grey').n_channels == load(rgb, channels=1).n_channels == 1 and load(rgb, channels=[2, 0]).n_channels == 2
    Image.fromarray(np.dstack([GREY, GREY, MASK])).save(rgb)
    with pytest.raises(ValueError, match='grey'): load(rgb, channels='grey')
    with pytest.raises(ValueError, match='from 0 to 2'): load(rgb, channels=3)
    with pytest.raises(ValueError, match='border.*crop') as told: as_sample(GREY, np.zeros((12, 15)))  # bare: Sample compares
    assert told
    with pytest.raises(FileNotFoundError, match=str(tmp_path/'no'/'a.png')): load(tmp_path/'no'/'a.png')
    picture(tmp_path/'m.png', MASK[:, :15].copy())
    with pytest.raises(ValueError, match='crop') as told: load(rgb, tmp_path/'m.png')
    sample = load(rgb)
    cut = eval(str(told.value).partition('e.g. ')[2])
    assert as_sample(cut, tmp_path/'m.png').shape == (12, 15)
    with pytest.raises(ValueError, match='turned'): load(rgb, picture(tmp_path/'t.png', MASK.T.copy()))
    assert sample.crop((0, 5), None).shape == (5, 16)
    for spans in (((0, 5),), ((5, 5), None), ((0, 5, 1), None)):
        with pytest.raises(ValueError, match='crop'): sample.crop(*spans)


@pytest.mark.parametrize('suffix', ['.nrrd', '.mha', '.tif', '.png', '.nii', '.nii.gz'])
def test_a_full_disk(tmp_path, monkeypatch, suffix):
    s = Sample(GREY, spacing=None)
    path = save(s, tmp_path/f'a{suffix}')[0]
    before = path.read_bytes()
    if suffix.startswith('.nii'):
        def full(img, to):
            Path(to).write_bytes(before[:len(before)//2])
            raise OSError(28, 'No space left on device')
        monkeypatch.setattr(nib, 'save', full)
    else:
        write = sitk.WriteImage
        def full(im, to, *args, **kw):  # as ITK does: without a word
            write(im, to, *args, **kw)
            content = Path(to).read_bytes()
            Path(to).write_bytes(content[:len(content)//2])
        monkeypatch.setattr(sitk, 'WriteImage', full)
    with pytest.raises((ValueError, OSError), match=f'a{suffix}'): save(s.replace(image=GREY + 1.), path)
    assert path.read_bytes() == before and [o.name for o in tmp_path.iterdir()] == [path.name]


def test_folders_of_series(tmp_path):
    for name in ('p1', 'p2'):
        (tmp_path/name).mkdir()
        for z in range(2): write_dicom(tmp_path/name/f'{z}.dcm', GREY, ImagePositionPatient=[0, 0, 5*z], **PLACE)
    assert [case.name for case in cohort(tmp_path)] == ['p1', 'p2']
    with pytest.raises(ValueError, match='one folder deeper, e.g. p1/0.dcm'): load(tmp_path)
    assert len(folder_cases(tmp_path)) == 2
