"Labels of other programs, in and out: voxel for voxel, in any orientation; what does not fit is refused."
import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from misas.data.dicom_seg import save_labels, save_map
from misas.data.formats import FLIP
from misas.data.grids import put_back
from misas.data.io import as_sample, load
from misas.data.rtstruct import STRUCTURES, inside
from misas.data.sample import Sample

AXIAL, CORONAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)
OBLIQUE, UPSIDE_DOWN = (.8, .6, 0, -.48, .64, .6), (-1, 0, 0, 0, -1, 0)
SHAPE = 9, 8, 5


def item(**tags):
    ds = pydicom.Dataset()
    for key, value in tags.items(): setattr(ds, key, value)
    return ds


def with_meta(ds):
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def write_series(folder, orientation=AXIAL, shape=SHAPE):
    "Slices in files without order, of an anonymous patient."
    folder.mkdir()
    study, series, world = (generate_uid() for _ in range(3))
    normal, (columns, rows, slices) = np.cross(*np.reshape(orientation, (2, 3))), shape
    for k in np.random.default_rng(1).permutation(slices):
        ds = with_meta(item(
            SOPClassUID='1.2.840.10008.5.1.4.1.1.2', SOPInstanceUID=generate_uid(), Modality='CT',
            StudyInstanceUID=study, SeriesInstanceUID=series, FrameOfReferenceUID=world,
            SliceThickness=2.5, Rows=rows, Columns=columns,
            ImagePositionPatient=[float(o) for o in np.array([12.3, -40.7, 5.1]) + 2.5*k*normal],
            ImageOrientationPatient=[*orientation], PixelSpacing=[.7, 1.3], SamplesPerPixel=1, BitsAllocated=16,
            BitsStored=16, HighBit=15, PixelRepresentation=0, PhotometricInterpretation='MONOCHROME2'))
        ds.PixelData = (np.arange(rows*columns).reshape(rows, columns) + 100*k).astype(np.uint16).tobytes()
        ds.save_as(folder/f'{ds.SOPInstanceUID[-9:]}.dcm', enforce_file_format=True)
    return folder


def some_labels(shape=SHAPE, seed=0): return np.random.default_rng(seed).integers(0, 3, shape)


def some_masks(shape=SHAPE):
    masks = np.random.default_rng(2).random((3, *shape)) < [[[[.5]]], [[[.2]]], [[[.1]]]]
    masks[:, 0, 0, 0] = True  # they do overlap
    return masks


def affines():
    "Voxel index -> mm for every order and direction of axes, and oblique."
    cos, sin = np.cos(.3), np.sin(.3)
    tilt = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = tilt @ (np.eye(3)[:, order]*signs)*[.7, 1.3, 2.5]
            affine[:3, 3] = 12.34567, -98.7654, 3
            yield affine


def test_a_slicer_segmentation_comes_back_in_every_orientation(tmp_path):
    path = tmp_path/'x.seg.nrrd'
    for k, affine in enumerate(affines()):
        masks = some_masks() if k % 2 else None
        labels, classes = (masks, ('a', 'b b', 'ç')) if k % 2 else (some_labels(), ('background', 'a', 'b'))
        case = Sample(np.zeros((1, *SHAPE)), labels, affine=affine, classes=classes)
        save_labels(case, path)
        back = as_sample(case.replace(labels=None), labels=str(path))
        assert np.array_equal(back.labels, labels) and back.classes == classes and back.labels.dtype.kind in 'biu'
        theirs = SimpleITK.ReadImage(str(path))
        lps = np.c_[np.reshape(theirs.GetDirection(), (3, 3))*theirs.GetSpacing(), theirs.GetOrigin()]
        assert np.abs(FLIP[:3, :3] @ lps - affine[:3]).max() < 1e-4


def test_a_slicer_segmentation_of_an_image_file(tmp_path):
    from misas.data.formats import write_nifti
    affine = next(affines())
    write_nifti(tmp_path/'image.nii.gz', np.zeros((1, *SHAPE), np.float32), affine)
    case = Sample(np.zeros((1, *SHAPE)), some_masks(), affine=affine, classes=('a', 'b', 'c'))
    save_labels(case, tmp_path/'x.seg.nrrd')
    case = load(tmp_path/'image.nii.gz', tmp_path/'x.seg.nrrd')
    assert np.array_equal(case.labels, some_masks()) and case.classes == ('a', 'b', 'c')


def test_segments_without_a_voxel_keep_their_place(tmp_path):
    masks = some_masks()
    masks[1] = False
    case = Sample(np.zeros((1, *SHAPE)), masks, affine=np.diag([2., 2, 2, 1]), classes=('a', 'b', 'c'))
    save_labels(case, tmp_path/'x.seg.nrrd')
    back = as_sample(case.replace(labels=None), labels=tmp_path/'x.seg.nrrd')
    assert np.array_equal(back.labels, masks)


def test_many_segments(tmp_path):
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    names = [f's{k}' for k in range(labels.max() + 1)]
    case = Sample(np.zeros((1, *SHAPE)), labels, affine=np.diag([2., 2, 2, 1]), classes=names)
    save_labels(case, tmp_path/'x.seg.nrrd')
    assert np.array_equal(as_sample(case.replace(labels=None), labels=tmp_path/'x.seg.nrrd').labels, labels)


def test_a_damaged_slicer_segmentation(tmp_path):
    path = tmp_path/'x.seg.nrrd'
    case = Sample(np.zeros((1, *SHAPE)), some_labels(), affine=np.diag([2., 2, 2, 1]))
    save_labels(case, path)
    path.write_bytes(path.read_bytes().replace(b'Segment0_Layer:=0', b'Segment0_Layer:=4'))
    with pytest.raises(ValueError, match='has no layer 4'): as_sample(case.replace(labels=None), labels=path)


@pytest.mark.parametrize('orientation', [AXIAL, CORONAL, SAGITTAL, OBLIQUE, UPSIDE_DOWN])
def test_a_dicom_segmentation_comes_back(tmp_path, orientation):
    images = write_series(tmp_path/'images', orientation)
    case = load(images)
    for labels, classes in ((some_labels(), ('background', 'a', 'b')), (some_masks(), ('a', 'b', 'c'))):
        path = save_labels(case.replace(labels=labels, classes=classes), tmp_path/'seg.dcm', source=images, model='net')
        back = load(images, path)
        assert np.array_equal(back.labels, labels) and back.classes == classes
    ds = pydicom.dcmread(path)
    first = pydicom.dcmread(next(images.iterdir()))
    assert ds.StudyInstanceUID == first.StudyInstanceUID and ds.FrameOfReferenceUID == first.FrameOfReferenceUID
    named = {one.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
             for one in ds.PerFrameFunctionalGroupsSequence}
    assert named <= {pydicom.dcmread(file).SOPInstanceUID for file in images.iterdir()} and len(named) == SHAPE[2]


@pytest.mark.parametrize('orientation', [AXIAL, OBLIQUE])
def test_a_map_comes_back(tmp_path, orientation):
    images = write_series(tmp_path/'images', orientation)
    case, values = load(images), np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)*1e-4
    found = SimpleNamespace(map=values, sample=case, method='integrated_gradients')
    back = load(save_map(found, tmp_path/'map.dcm', source=images))
    assert np.array_equal(back.image, values) and np.abs(back.affine - case.affine).max() < 1e-4
    meaning = pydicom.dcmread(tmp_path/'map.dcm').SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert meaning.LUTExplanation == 'integrated_gradients'


def test_labels_of_another_patient_are_refused(tmp_path):
    one, other = write_series(tmp_path/'one'), write_series(tmp_path/'other')
    path = save_labels(load(one).replace(labels=some_labels()), tmp_path/'seg.dcm', source=one)
    with pytest.raises(ValueError, match='belongs to another image'): load(other, path)


def test_nothing_is_left_of_one_that_cannot_be_written(tmp_path, monkeypatch):
    images = write_series(tmp_path/'images')
    case = load(images).replace(labels=some_labels())
    with pytest.raises(ValueError, match='resample it'):
        save_labels(case.crop((1, 9), None, None), tmp_path/'seg.dcm', source=images)
    with pytest.raises(ValueError, match='hold no class'):
        save_labels(case.replace(labels=0*case.labels), tmp_path/'seg.dcm', source=images)
    monkeypatch.setitem(sys.modules, 'highdicom', None)
    with pytest.raises(ImportError, match=r'pip install "misas\[dicom\]"'):
        save_labels(case, tmp_path/'seg.dcm', source=images)
    assert [file.name for file in tmp_path.iterdir()] == ['images']


# ---- contours ----

def circle(row, column, radius, turn=1):
    angle = turn*np.linspace(0, 2*np.pi, 60, endpoint=False)
    return np.c_[row + radius*np.sin(angle), column + radius*np.cos(angle)]


def write_structures(path, structures, affine, world=None, kind='CLOSED_PLANAR'):
    "An RTSTRUCT of {name: [(slice, points)]}, points along the first and second axis of a volume."
    rois = []
    for number, contours in enumerate(structures.values(), 1):
        drawn = []
        for level, points in contours:
            lps = FLIP @ affine @ np.c_[points, np.full(len(points), level), np.ones(len(points))].T
            numbers = [f'{o:.3f}' for o in lps[:3].T.ravel()]
            drawn.append(item(ContourGeometricType=kind, NumberOfContourPoints=len(points), ContourData=numbers))
        rois.append(item(ReferencedROINumber=number, ContourSequence=drawn))
    ds = with_meta(item(
        SOPClassUID=STRUCTURES, SOPInstanceUID=generate_uid(), Modality='RTSTRUCT', ROIContourSequence=rois,
        StructureSetROISequence=[item(ROINumber=k, ROIName=name, ReferencedFrameOfReferenceUID=world or generate_uid())
                                 for k, name in enumerate(structures, 1)]))
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize('orientation', [AXIAL, CORONAL, SAGITTAL, OBLIQUE, UPSIDE_DOWN])
@pytest.mark.parametrize('kind', ['CLOSED_PLANAR', 'CLOSEDPLANAR_XOR'])
def test_contours_with_holes(tmp_path, orientation, kind):
    images = write_series(tmp_path/'images', orientation, (30, 26, 4))
    world = str(pydicom.dcmread(next(images.iterdir())).FrameOfReferenceUID)
    case = load(images)
    ring = [circle(14.2, 12.3, 9), circle(14.4, 12.1, 4, turn=-1)]
    drawn = dict(ring=[(z, points) for z in (0, 1, 2) for points in ring], island=[(1, circle(14.3, 12.2, 2.1))])
    path = write_structures(tmp_path/'rt.dcm', drawn, case.affine, world, kind)
    back = load(images, path)
    row, column = np.indices((30, 26))
    far = [np.hypot(row - r, column - c) for r, c in ((14.2, 12.3), (14.4, 12.1), (14.3, 12.2))]
    clear = (np.abs(far[0] - 9) > .05) & (np.abs(far[1] - 4) > .05) & (np.abs(far[2] - 2.1) > .05)
    wanted = ((far[0] < 9) & (far[1] > 4)) + 2*(far[2] < 2.1)
    assert back.classes == ('background', 'ring', 'island') and (back.labels[..., 1] == wanted)[clear].all()
    assert not back.labels[..., 3].any() and clear.mean() > .9
    with pytest.raises(ValueError, match='contours .RTSTRUCT., not an image; pass it as the labels'): load(path)


def test_contours_of_another_patient(tmp_path):
    images = write_series(tmp_path/'images')
    path = write_structures(tmp_path/'rt.dcm', dict(a=[(1, circle(4, 4, 2))]), load(images).affine)
    with pytest.raises(ValueError, match='belongs to another image'): load(images, path)


def test_a_structure_that_was_never_drawn(tmp_path):
    images = write_series(tmp_path/'images')
    world = str(pydicom.dcmread(next(images.iterdir())).FrameOfReferenceUID)
    path = write_structures(tmp_path/'rt.dcm', dict(a=[], b=[(1, circle(4, 4, 2.2))]), load(images).affine, world)
    back = load(images, path)
    assert back.classes == ('background', 'a', 'b') and set(np.unique(back.labels)) == {0, 2}


def test_neighbours_share_no_pixel_and_leave_none_out():
    "Any polygon cut in two: its halves are disjoint, and together are the whole."
    rng = np.random.default_rng(0)
    for _ in range(50):
        angle = np.sort(rng.random(12))*2*np.pi
        whole = np.c_[10 + rng.integers(3, 9, 12)*np.sin(angle), 10 + rng.integers(3, 9, 12)*np.cos(angle)].round(1)
        one, other = np.r_[whole[:7]], np.r_[whole[6:], whole[:1]]
        halves = [inside([part], (22, 21)) for part in (one, other)]
        assert np.array_equal(halves[0] ^ halves[1], inside([whole], (22, 21)))


def test_a_contour_beyond_the_image_is_cut():
    assert inside([np.array([[-5, -5], [-5, 3.5], [3.5, 3.5], [3.5, -5]])], (6, 7)).sum() == 16
    assert inside([np.array([[-5, 2.5], [-5, 90], [90, 90], [90, 2.5]])], (6, 7)).sum() == 24


# ---- axes in another order ----

def test_volumes_are_put_back_whatever_their_order():
    wanted = list(affines())[5]
    labels = some_labels()
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turn, values = np.eye(4)[:, [*order, 3]], labels.transpose(order)
            for axis in range(3):
                if not flips[axis]: continue
                turn[:, 3] += turn[:, axis]*(values.shape[axis] - 1)
                turn[:, axis] *= -1
                values = np.flip(values, axis)
            assert np.array_equal(put_back(values, wanted @ turn, SHAPE, wanted), labels)


def test_masks_by_name_are_classes_that_overlap(tmp_path):
    from misas.data.formats import write_nifti
    affine, masks = next(affines()), some_masks()
    write_nifti(tmp_path/'image.nii.gz', np.zeros((1, *SHAPE), np.float32), affine)
    for name, mask in zip('abc', masks): write_nifti(tmp_path/f'{name}.nii.gz', mask[None].astype(np.uint8), affine)
    case = load(tmp_path/'image.nii.gz', {name: tmp_path/f'{name}.nii.gz' for name in 'abc'})
    assert case.classes == ('a', 'b', 'c') and np.array_equal(case.labels, masks)
