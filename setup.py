"""Installs misas; every fact about the package stands in settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
extras = {o: cfg[f'{o}_requirements'].split() for o in ('demo', 'onnx', 'mri', 'dask', 'nnunet', 'huggingface', 'dicom', 'dev')}
extras['dev'] = sorted({o for v in extras.values() for o in v})  # the tests run everything but what stands below
extras['openvino'] = cfg['openvino_requirements'].split()  # one more way for `fast=True`

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], url=cfg['git_url'], license=cfg['license'], python_requires=f">={cfg['min_python']}",
    classifiers=['Intended Audience :: Science/Research', 'Programming Language :: Python :: 3',
                 'Topic :: Scientific/Engineering :: Medical Science Apps.', 'Framework :: Jupyter'],
    packages=find_packages(include=['misas', 'misas.*']), package_data={'misas': cfg['package_data'].split()},
    install_requires=cfg['requirements'].split(), extras_require=extras, zip_safe=False,
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['misas=misas._modidx:d']},
)
