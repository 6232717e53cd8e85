// Pictures in a page: frames that are unpacked when they are asked for, shown by the viewer, moved by sliders and choices.
// Needs Viewer and unpacked (viewer.js), Curves (curve.js), inflated (packed.js), and what Python left in the page: #misas-known, and the arrays #misas-0, ...

const KEEP = 100e6;  // bytes of arrays that stay unpacked
const PAPER = {alone: 660, besideCurves: 330};  // width of a printed picture, in pixels
const by = id => document.getElementById(`misas-${id}`);
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const copy = (name, parent) => {
  const made = by(name).content.firstElementChild.cloneNode(true);
  parent.append(made);
  return made;
};

/** The arrays of the page by number, those used last kept. */
class Arrays {
  constructor() { this.kept = new Map(); this.size = 0; }

  get(number) {
    const found = this.kept.get(number) ?? this.unpacked(number);
    this.kept.delete(number);
    this.kept.set(number, found);        // now the last one
    return found;
  }

  async unpacked(number) {
    const array = await inflated(`misas-${number}`);
    this.size += array.length;
    for (const [old, promise] of this.kept) {
      if (this.size <= KEEP || old === number) break;
      this.kept.delete(old);
      this.size -= (await promise).length;
    }
    return array;
  }

  /** A frame as the viewer wants it. */
  async frame(known) {
    const numbers = ['grey', 'truth', 'prediction', 'other', 'valid', 'map', 'region'].map(name => known[name]).filter(n => n != null);
    const found = new Map(await Promise.all(numbers.map(async number => [number, await this.get(number)])));
    return unpacked(known, number => found.get(number));
  }
}

/** A slider or a choice: a number from 0 to the last of some texts. */
class Axis {
  constructor({name, texts, start, choice}, parent, number, heard) {
    this.texts = texts;
    this.root = copy(choice ? 'choice' : 'slider', parent);
    this.control = this.root.querySelector('input, select');
    this.output = this.root.querySelector('output');
    this.control.id = `misas-axis-${number}`;
    Object.assign(this.root.querySelector('label'), {htmlFor: this.control.id, textContent: name});
    if (choice) this.control.replaceChildren(...texts.map((text, k) => new Option(text, k)));
    else this.control.max = texts.length - 1;
    if (this.output) this.output.style.minWidth = `${Math.min(24, Math.max(...texts.map(text => text.length)))}ch`;
    this.control.addEventListener('input', () => { this.tell(); heard(); });
    this.at = start;
  }

  get at() { return Number(this.control.value); }
  set at(value) { this.control.value = value; this.tell(); }

  tell() {
    if (!this.output) return;
    this.output.textContent = this.texts[this.at];
    this.control.setAttribute('aria-valuetext', this.texts[this.at]);
  }
}

/** All that is seen at once. */
class Stage {
  constructor(known) {
    [this.known, this.arrays, this.asked, this.painted] = [known, new Arrays(), 0, 0];
    this.viewer = new Viewer(by('look'), known.look, change => this.follow(change));
    by('look').prepend(this.viewer.root);
    this.axes = known.axes.map((axis, n) => new Axis(axis, by('axes'), n, () => this.show()));
    if (known.curves) this.addCurves();
    else this.keepNarrow();
    this.addPlayer();
    this.addBoxes();
    this.addLook();
    window.addEventListener('beforeprint', () => this.print());
    document.getElementById('misas').stage = this;   // for whoever wants to show a picture
  }

  /** To the picture at these places of the axes. */
  go(places) {
    places.forEach((at, n) => { this.axes[n].at = at; });
    return this.show();
  }

  /** Number of the frame that is asked for. */
  get at() { return this.axes.reduce((sum, axis) => sum*axis.texts.length + axis.at, 0); }

  async show() {
    const mine = ++this.asked, at = this.at;
    this.tell(at);
    let frame;
    try { frame = await this.arrays.frame(this.known.frames[at]); }
    catch (error) { by('message').textContent = `The picture cannot be shown: ${error.message}`; return; }
    if (mine < this.painted) return;     // a later one is there already
    this.painted = mine;
    this.viewer.show(frame, this.known.extent);
    if (!this.slices) this.addSlices(frame);
    by('hatched').hidden = !frame.valid?.includes(0);
    document.getElementById('misas').classList.add('ready');
    document.getElementById('misas').dataset.shown = at;
    for (const next of [at + 1, at - 1]) if (this.known.frames[next]) this.arrays.frame(this.known.frames[next]);
  }

  tell(at) {
    if (this.known.told) by('told').textContent = this.known.told[at];
    by('told').hidden = !this.known.told;
    if (this.curves) this.curves.mark(this.axes[0].at, this.known.look.sides ? [] : this.viewer.state.hidden);
  }

  /** What a hand in the picture changed. */
  follow(change) {
    if (change.wipe !== undefined) by('wipe').value = change.wipe;
    if (change.voxel) this.slices?.forEach(({axis, across}) => { axis.at = change.voxel[across]; });
  }

  /** One picture is not wider than it is at its full height; what is left is for its controls. */
  keepNarrow() {
    const [[width, height], ...more] = this.known.extent;
    if (more.length) return;
    by('look').classList.add('alone');
    by('look').style.setProperty('--wide', `${Math.max(320, this.viewer.look.height*width/height)}px`);
  }

  addSlices(frame) {
    this.slices = frame.planes.filter(plane => plane.across >= 0 && frame.shape[plane.across] > 1).map((plane, n) => {
      const {across} = plane, count = frame.shape[across], texts = Array.from({length: count}, (_, k) => `${k + 1} of ${count}`);
      const axis = new Axis({name: plane.name, texts, start: this.viewer.state.voxel[across]}, by('slices'), `slice-${n}`, () => {
        const voxel = [...this.viewer.state.voxel];
        voxel[across] = axis.at;
        this.viewer.set({voxel});
      });
      return {axis, across};
    });
  }

  addCurves() {
    const {curves, names} = this.known, menu = by('metric');
    this.curves = new Curves(by('curves'), at => { this.axes[0].at = at; this.show(); });
    menu.replaceChildren(...curves.map((curve, k) => new Option(curve.label, k)));
    by('metrics').hidden = curves.length < 2;
    by('beside').hidden = false;
    const choose = () => { this.curves.show(curves, Number(menu.value), names); this.tell(this.at); };
    this.curves.show(curves, 0, names);
    menu.addEventListener('change', choose);
  }

  addPlayer() {
    if (!this.axes.length || this.known.axes[0].choice || this.axes[0].texts.length < 2) return;
    this.player = copy('player', this.axes[0].root);
    this.axes[0].root.prepend(this.player);
    this.player.addEventListener('click', () => this.play(!this.timer));
    document.addEventListener('keydown', event => {
      if (event.key !== ' ' || event.repeat || event.target.closest('button, select, summary, input[type=checkbox]')) return;
      event.preventDefault();
      this.play(!this.timer);
    });
  }

  play(on) {
    clearTimeout(this.timer);
    this.timer = on ? setTimeout(() => this.next(), 250) : 0;
    this.player.setAttribute('aria-pressed', String(on));
    this.player.textContent = on ? '⏸ pause' : '▶ play';
  }

  async next() {
    const [axis] = this.axes;
    axis.at = (axis.at + 1) % axis.texts.length;
    await this.show();
    if (this.timer) this.play(true);
  }

  /** A box for each class, and for each thing that is drawn. */
  addBoxes() {
    const {look, frames} = this.known, has = name => frames.some(frame => frame[name] != null);
    const boxes = look.classes.map((name, n) => {
      const box = copy('box', by('classes')), swatch = document.createElement('span');
      Object.assign(swatch, {className: 'swatch', ariaHidden: 'true'}).style.background = `rgb(${look.palette[n]})`;
      box.querySelector('span').append(swatch, name);
      return box.firstElementChild;
    });
    by('classes').hidden = !has('truth') && !has('prediction');
    boxes.forEach((box, n) => box.addEventListener('change', () => {
      this.viewer.set({hidden: boxes.flatMap((one, k) => (one.checked ? [] : [k + 1]))});
      this.tell(this.at);
    }));
    const solid = frames.some(frame => frame.planes.length > 1);
    by('solid').hidden = !solid;
    const line = has('prediction') || has('map') ? 'white line' : 'lines in the colours of the classes';
    const parts = [['prediction', 'prediction', has('prediction')], ['truth', `${this.known.lines} (${line})`, has('truth')],
      ['map', 'map', has('map')], ['region', 'what is explained (white line)', has('region')], ['cross', 'crosshair', solid]];
    for (const [name, text, there] of parts) if (there) this.addBox(name, text);
  }

  addBox(name, text) {
    const box = copy('box', by('boxes')), input = box.firstElementChild;
    box.lastElementChild.textContent = text;
    input.id = `misas-shows-${name}`;
    input.addEventListener('change', () => this.viewer.set({[name]: input.checked}));
  }

  /** The way of drawing, opacity, channel. */
  addLook() {
    const {frames} = this.known, predicted = frames.some(frame => frame.prediction != null), {channels} = frames[0];
    const both = frames.some(frame => frame.prediction != null && frame.truth != null);
    for (const name of ['ways', 'opaque']) by(name).hidden = !predicted;
    by('hiding').hidden = !frames.some(frame => frame.map != null);
    by('threshold').addEventListener('input', () => this.viewer.set({threshold: Number(by('threshold').value)}));
    if (!both) by('way').querySelector('[value=errors]').remove();
    this.addWipe(frames.some(frame => frame.other != null));
    by('way').addEventListener('change', () => this.viewer.set({mode: by('way').value}));
    by('opacity').addEventListener('input', () => this.viewer.set({opacity: Number(by('opacity').value)}));
    by('channels').hidden = channels < 2;
    by('channel').replaceChildren(...Array.from({length: channels}, (_, k) => new Option(channels === 3 && !k ? 'all' : k, k)));
    by('channel').value = this.known.channel;
    this.viewer.set({channel: this.known.channel});
    by('channel').addEventListener('change', () => this.viewer.set({channel: Number(by('channel').value)}));
    by('controls').hidden = false;
  }

  /** The line between two predictions. */
  addWipe(there) {
    by('wiping').hidden = !there;
    if (!there) { by('way').querySelector('[value=differ]').remove(); return; }
    by('wiping').querySelectorAll('span').forEach((span, n) => { span.textContent = this.known.look.sides[n]; });
    by('wipe').addEventListener('input', () => this.viewer.set({wipe: Number(by('wipe').value)}));
    this.viewer.set({wipe: .5});
  }

  /** What is seen as one picture as wide as paper, so that its letters can be read there. */
  print() {
    const {viewer} = this, out = by('printed'), most = this.curves ? PAPER.besideCurves : PAPER.alone;
    viewer.layout(Math.min(most, viewer.root.clientWidth));
    const places = viewer.planes.map(({box, canvas, ratio}) => {
      const [x, y] = [box.style.left, box.style.top].map(text => parseFloat(text)*ratio);
      return {canvas, x, y, right: x + canvas.width, bottom: y + canvas.height};
    });
    const end = name => Math.max(...places.map(place => place[name])), left = Math.min(...places.map(place => place.x));
    [out.width, out.height] = [end('right') - left, end('bottom')];
    for (const {canvas, x, y} of places) out.getContext('2d').drawImage(canvas, x - left, y);
    out.style.width = `${out.width/viewer.planes[0].ratio}px`;
    viewer.layout();
  }
}

new Stage(JSON.parse(by('known').textContent)).show();
