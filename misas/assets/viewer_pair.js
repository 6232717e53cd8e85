// Two frames next to each other, seen in the same way: what a hand does to one, it does to both. Follows viewer_model.js in
// one text.

const PAIR_STYLE = `
.mp { container-type: inline-size; width: 100%; min-width: 0; color: var(--jp-ui-font-color1, CanvasText);
  font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif) }
.mp-halves { display: grid; grid-template-columns: 1fr 1fr; gap: 0 12px }
.mp-half { min-width: 0; display: flex; flex-direction: column; justify-content: space-between }
.mp-said { min-height: 1.4em; overflow-wrap: anywhere }
.mp-half .mv-bar { min-height: 2.9em }
@container (max-width: 420px) { .mp-halves { grid-template-columns: 1fr } }
`;

/** The same place in a frame of another shape. */
const samePlace = (voxel, from, to) => voxel.map((at, i) => Math.floor((at + .5)*to[i]/from[i]));

/** A frame of which only the pictures of one direction are shown (beyond the last one: of all), and their extent. */
function directed(frame, extent, direction) {
  const count = frame.planes.length, seen = [...Array(count).keys()].filter(n => direction >= count || n === direction);
  return [{...frame, planes: seen.map(n => frame.planes[n])}, seen.map(n => extent[n])];
}

/** One of two viewers. */
class Half extends Viewer {
  get others() { return this.pair.halves.filter(one => one !== this && one.frame); }
  get canvases() { return this.pair.halves.filter(one => one.frame).flatMap(one => one.planes.map(plane => plane.canvas)); }

  /** Take over what is seen, with a voxel of a frame of some shape; where the same place is seen already, that stays. */
  follow(state, shape) {
    const mine = this.frame.shape, here = samePlace(this.state.voxel, mine, shape);
    const voxel = String(here) === String(state.voxel) ? this.state.voxel : samePlace(state.voxel, shape, mine);
    this.set({...state, voxel}, true);
  }

  point(voxel) {
    super.point(voxel);
    for (const one of this.others) one.mirror(voxel && samePlace(voxel, this.frame.shape, one.frame.shape));
  }

  /** What is at the place that is pointed at in the other one. */
  mirror(voxel) {
    this.mirrored = voxel;
    super.point(voxel);
    this.draw();
  }

  zoomed(plane) {
    super.zoomed(plane);
    for (const one of this.others) one.planes[plane.number]?.zoomAs(plane);
  }

  show(frame, extent) {
    this.stage.style.visibility = frame ? '' : 'hidden';
    if (frame) super.show(frame, extent);
    else this.frame = null;
  }

  draw() { if (this.frame) super.draw(); }
}

class Pair {
  constructor(parent, look, heard) {
    this.root = element('div', 'mp', parent);
    element('style', '', this.root).textContent = PAIR_STYLE;
    const row = element('div', 'mp-halves', this.root);
    this.halves = look.halves.map(({name, mark}) => {
      const box = element('div', `mp-half ${mark}`, row), said = element('div', 'mp-said', box);
      const half = new Half(box, {...look, name}, change => heard(half, change));
      return Object.assign(half, {pair: this, said});
    });
    this.halves[0].root.querySelector('.mv-save').style.visibility = 'hidden';  // the other one saves both
  }

  say(captions) { this.halves.forEach((half, k) => { half.said.textContent = captions[k]; }); }

  remove() {
    for (const half of this.halves) half.remove();
    this.root.remove();
  }
}

export default {
  render({model, el}) {
    const shape = () => model.get('frames')[0].shape;
    const pair = new Pair(el, model.get('look'), (half, {voxel, ...change}) =>
      write(model, voxel ? {...change, voxel: samePlace(voxel, half.frame.shape, shape())} : change));
    const follow = () => { for (const half of pair.halves) if (half.frame) half.follow(read(model), shape()); };
    const put = (half, frame, pool) => {
      const arrays = frame && unpacked(frame, n => bytes(pool[n]));
      half.show(...frame ? directed(arrays, model.get('extent'), model.get('direction')) : [null]);
    };
    const show = () => {
      const {frame, pool} = model.get('changed');
      put(pair.halves[0], model.get('frames')[0], model.get('pool'));
      put(pair.halves[1], frame, pool);
      follow();
    };
    const say = () => pair.say(model.get('captions'));
    const heard = [...['frames', 'pool', 'changed', 'direction'].map(name => [`change:${name}`, show]), ['change:captions', say],
      ...linked(model).map(name => [`change:${name}`, follow])];
    for (const [name, f] of heard) model.on(name, f);
    show();
    say();
    return () => {
      for (const [name, f] of heard) model.off(name, f);
      pair.remove();
    };
  },
};
