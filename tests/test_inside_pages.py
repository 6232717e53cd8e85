"Pages of what looks inside networks, in a real browser."
from test_pages import chromium, finder, opened, paths, spots  # noqa: F401
from test_sparse import net, scan

from misas.inside.target import Target
from misas.sparse.atoms import atoms, explained, used
from misas.sparse.contributions import contributions
from misas.structure.autoencoder import autoencoder
from misas.structure.concept import concept
from misas.structure.embed import embed
from misas.structure.latent import traverse
from misas.transforms.intensity import Brightness


def inside():
    "What looks into networks, by name; of all of it there are words and a figure."
    discs, model = [s.replace(name=f'disc {i}') for i, s in enumerate(spots()*2)], finder()
    sizes, ae = [float(s.labels.sum()) for s in discs], autoencoder(discs, kind='linear', latent=3)
    (coded, image), size = (net(), scan()), concept(model, discs, values=sizes, name='size')
    points = embed(model, discs)
    return dict(
        embedding=points, path=points.path(discs[0], Brightness([.8, 1])), traversal=traverse(ae, discs[0], model=model),
        ways=[traverse(ae, discs[0], k) for k in (0, 1)], concept=size, tcav=size.tcav(discs[:4], 'disc'),
        atoms=atoms(coded), used=used(coded, [image]), explained=explained(coded, image),
        contributions=contributions(coded, image, Target('disc', 'labels')))


def test_pages_of_what_looks_inside(opened):  # noqa: F811
    "Words in the box, a figure, numbers folded; no scrollbar on a phone and on a screen."
    for name, what in inside().items():
        page = opened(what, dict(width=390))
        p = page.page
        for width in (390, 1280):
            p.set_viewport_size(dict(width=width, height=900))
            for one in p.locator('details').all(): one.locator('summary').first.click()
            assert page.fits(), f'{name} is wider than {width}'
        first = p.locator('h1 + p')
        assert first.get_attribute('class').startswith('verdict') and not first.inner_text().endswith(':'), name
        assert p.locator('figure img').count() and all(p.locator('figure img').evaluate_all('all => all.map(one => one.alt)')), name
        page.shot(f'inside_{name}')


def test_a_way_and_a_split_are_moved_in_the_viewer(opened):  # noqa: F811
    "The slider goes along the component; a map of an atom is that of the result."
    discs = spots()
    way = traverse(autoencoder(discs, kind='linear', latent=2), discs[0], model=finder())
    page = opened(way)
    page.slider().focus()
    page.page.keyboard.press('End')
    page.settled(len(way.values) - 1)
    assert (page.frame('prediction') == way.predictions[-1].ravel()).all()
    split = contributions(net(), scan(), Target('disc', 'labels'))
    page = opened(split, top=2)
    assert page.page.locator('#misas-axis-0 option').count() == 3 + 2
    page.page.locator('#misas-axis-0').select_option('3')
    page.settled(3)
    row = split.atoms.iloc[0]
    assert page.page.locator('#misas-told').inner_text() == f'layer {row.layer:.0f}, atom {row.atom:.0f} contributes {row.contribution:+.3g}'
