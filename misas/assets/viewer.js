// Slices of 8-bit images with truth, prediction and map, cut, windowed, coloured and outlined in the page.
//
//   const viewer = new Viewer(element, look)   look: see DEFAULTS
//   viewer.show(frame)                         frame: {shape, spacing, channels, range, planes, affine, grey, truth,
//                                              prediction, other, valid, map, overlapping}; all bytes in C order
// viewer_hands.js follows it in one text; viewer_map.js adds maps, and viewer_widget.js makes a widget of it.

const DEFAULTS = {
  palette: [],          // [r, g, b] of class 1, 2, ...
  hatches: [],          // patterns of their fillings, '' (none), '////', '....' or 'xxxx', as in figures
  dashes: [],           // patterns of their lines: '-', '--', ':' or '-.'
  classes: [],          // their names
  mapColours: null,     // [r, g, b, a], 0 to 255, of maps: see viewer_map.js
  height: 560,          // of the stage at most, in pixels
  name: 'image',        // for those who cannot see it
  pointed: false,       // is a voxel chosen and marked in a picture, too, not only in a volume?
  sides: ['', ''],      // whose the prediction is, and whose the other one
};

const STATE = {
  voxel: null,          // where the slices cross
  window: [0, 255],     // bytes shown as black and white
  mode: 'fill',         // 'fill', 'outline', 'errors' or 'differ': what only one of two predictions has
  opacity: .45,
  hidden: [],           // numbers of classes that are not shown
  channel: 0,
  wipe: 1,              // share of the width with the prediction; beyond it is the other one
  truth: true, prediction: true, map: true, cross: true,   // are they shown?
};

const CROSS = '#ff2fd0', NOTHING = 'background';  // a colour that no class has
const STYLE = `
.mv { container-type: inline-size; width: 100%; min-width: 0; color: var(--jp-ui-font-color1, CanvasText);
  font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif) }
.mv-stage { position: relative; background: #000; overflow: hidden }
.mv-plane { position: absolute; touch-action: none }
.mv-plane canvas { display: block; width: 100%; height: 100%; cursor: crosshair; outline-offset: -2px }
.mv-plane canvas:focus-visible { outline: 2px solid #4da3ff }
.mv-bar { display: flex; gap: 8px; align-items: baseline; min-height: 1.5em; padding: 2px 0 }
.mv-told { flex: 1 1 auto; min-width: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
.mv-bar button { flex: none; font: inherit; color: inherit; background: none; border: 1px solid; border-radius: 3px;
  opacity: .8; cursor: pointer }
`;

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const element = (tag, name, parent) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (parent) parent.append(made);
  return made;
};

/** Steps between voxels in an array of a shape, in C order. */
function strides(shape) {
  const out = new Array(shape.length).fill(1);
  for (let i = shape.length - 2; i >= 0; i--) out[i] = out[i + 1]*shape[i + 1];
  return out;
}

/** One way to cut a frame: which voxels are in the rows and columns of its picture. */
class Cut {
  constructor(frame, plane, voxel) {
    const steps = strides(frame.shape), {row, col, across, flipRow, flipCol} = plane;
    this.plane = plane;
    [this.height, this.width] = [frame.shape[row], frame.shape[col]];
    this.first = across < 0 ? 0 : voxel[across]*steps[across];
    if (flipRow) this.first += (this.height - 1)*steps[row];
    if (flipCol) this.first += (this.width - 1)*steps[col];
    this.down = flipRow ? -steps[row] : steps[row];
    this.right = flipCol ? -steps[col] : steps[col];
    this.mm = [frame.spacing[col], frame.spacing[row]];
  }

  index(i, j) { return this.first + j*this.down + i*this.right; }

  /** Numbers of voxels, row by row. */
  values(data) {
    const out = new data.constructor(this.width*this.height);
    for (let j = 0, at = 0; j < this.height; j++)
      for (let i = 0, q = this.index(0, j); i < this.width; i++, q += this.right, at++) out[at] = data[q];
    return out;
  }

  /** The voxel at a column and row of the picture. */
  voxel(i, j, from) {
    const {row, col, flipRow, flipCol} = this.plane, out = [...from];
    out[row] = clamp(flipRow ? this.height - 1 - j : j, 0, this.height - 1);
    out[col] = clamp(flipCol ? this.width - 1 - i : i, 0, this.width - 1);
    return out;
  }

  /** Column and row of a voxel. */
  place(voxel) {
    const {row, col, flipRow, flipCol} = this.plane;
    return [flipCol ? this.width - 1 - voxel[col] : voxel[col], flipRow ? this.height - 1 - voxel[row] : voxel[row]];
  }
}

/** Class numbers at an index of a label map, or of masks (bit k - 1 of a number: class k). */
function classesAt(frame, what, index) {
  const data = frame[what];
  if (!data) return null;
  if (!frame.overlapping) return data[index] ? [data[index]] : [];
  const out = [];
  for (let k = 1, rest = data[index]; rest; k++, rest >>>= 1) if (rest & 1) out.push(k);
  return out;
}

/** Labels in a cut, row by row, hidden classes left out; of masks those of one class. Without such labels: null. */
function labelsOf(frame, what, cut, hidden, only = 0) {
  const data = frame[what];
  if (!data) return null;
  const out = new Uint16Array(cut.width*cut.height);
  const one = frame.overlapping ? v => (v >>> (only - 1)) & 1 : v => (hidden.includes(v) || only && v !== only ? 0 : v);
  for (let j = 0, at = 0; j < cut.height; j++)
    for (let i = 0, q = cut.index(0, j); i < cut.width; i++, q += cut.right, at++) out[at] = one(data[q]);
  return out;
}

/** The first column of a cut that shows the other prediction. */
const wipedFrom = (frame, cut, state) => (frame.other ? Math.round(clamp(state.wipe, 0, 1)*cut.width) : cut.width);

/** As `labelsOf` of the prediction, and beyond the wipe of the other one. */
function predicted(frame, cut, state, only) {
  const out = labelsOf(frame, 'prediction', cut, state.hidden, only), from = wipedFrom(frame, cut, state);
  if (from === cut.width) return out;
  const other = labelsOf(frame, 'other', cut, state.hidden, only);
  return other.map((label, at) => (at % cut.width < from ? out[at] : label));
}

/** Edges between voxels of different labels, as a path in voxels; runs are one line. */
function edges(labels, width, height) {
  const path = new Path2D();
  const at = (i, j) => (i < 0 || j < 0 || i >= width || j >= height ? 0 : labels[j*width + i]);
  const lines = (count, length, differ, point) => {
    for (let row = 0; row <= count; row++)
      for (let i = 0; i < length; i++) {
        const start = i;
        while (i < length && differ(i, row)) i++;
        if (i > start) { path.moveTo(...point(start, row)); path.lineTo(...point(i, row)); }
      }
  };
  lines(height, width, (i, j) => at(i, j) !== at(i, j - 1), (i, j) => [i, j]);
  lines(width, height, (j, i) => at(i, j) !== at(i - 1, j), (j, i) => [i, j]);
  return path;
}

const minus = (a, b) => a.map((v, i) => (v && !b[i] ? 1 : 0));

/** Runs of a mask as rectangles in voxels. */
function runs(mask, width, height) {
  const path = new Path2D();
  for (let j = 0; j < height; j++)
    for (let i = 0; i < width; i++) {
      const start = j*width + i;
      let n = 0;
      while (i + n < width && mask[start + n]) n++;
      if (n) { path.rect(i, j, n, 1); i += n; }
    }
  return path;
}

const FALLING = '\\\\\\\\', RISING = '////', DOTS = '....', CROSSED = 'xxxx';  // as figures call them
const DASHES = {'--': [7, 4], ':': [3, 4], '-.': [9, 3, 3, 3]};  // lengths of ink and gap

/** Lines or dots in a colour, to fill with. */
function hatching(pen, colour, pattern) {
  const tile = element('canvas'), ink = tile.getContext('2d');
  tile.width = tile.height = 8;
  ink.strokeStyle = ink.fillStyle = colour;
  ink.lineWidth = pattern === CROSSED ? 1.5 : 2.5;
  if (pattern === DOTS) ink.arc(4, 4, 2, 0, 2*Math.PI);
  for (const shift of pattern === DOTS ? [] : [-8, 0, 8]) {
    if (pattern !== RISING) { ink.moveTo(shift, 0); ink.lineTo(shift + 8, 8); }
    if (pattern !== FALLING) { ink.moveTo(shift, 8); ink.lineTo(shift + 8, 0); }
  }
  if (pattern === DOTS) ink.fill();
  else ink.stroke();
  return pen.createPattern(tile, 'repeat');
}

/** A colour with gaps, to draw lines with: diagonal stripes, as lines along voxels are too short for dashes of their own. */
function dashing(pen, colour, lengths) {
  const size = lengths.reduce((sum, n) => sum + n, 0), inked = lengths.flatMap((n, k) => new Array(n).fill(k % 2 === 0));
  const tile = element('canvas'), ink = tile.getContext('2d');
  tile.width = tile.height = size;
  ink.fillStyle = colour;
  for (let y = 0; y < size; y++)
    for (let x = 0; x < size; x++) if (inked[(x + y) % size]) ink.fillRect(x, y, 1, 1);
  return pen.createPattern(tile, 'repeat');
}

/** Masks of the classes in a cut whose fillings have a pattern: by the numbers of the classes. */
function patterned(frame, cut, state, look) {
  const with_ = look.hatches.flatMap((name, n) => (name && !state.hidden.includes(n + 1) ? [n + 1] : []));
  if (!with_.length) return new Map();
  if (frame.overlapping) return new Map(with_.map(k => [k, predicted(frame, cut, state, k)]));
  const labels = predicted(frame, cut, state), there = new Set(labels);
  return new Map(with_.filter(k => there.has(k)).map(k => [k, labels.map(v => (v === k ? 1 : 0))]));
}

/** The voxels of a cut as pixels: grey values, fillings and map; exact, one pixel a voxel. */
export function pixels(frame, cut, state, look) {
  const out = new Uint8ClampedArray(4*cut.width*cut.height), [black, white] = state.window;
  const colour = frame.channels === 3 && !state.channel, from = wipedFrom(frame, cut, state);
  const size = frame.grey.length/frame.channels, scale = 255/Math.max(1e-6, white - black), grey = new Uint8Array(256);
  for (let v = 0; v < 256; v++) grey[v] = clamp(Math.floor((v - black)*scale + 1e-6), 0, 255);
  const first = colour ? [0, size, 2*size] : new Array(3).fill(state.channel*size);
  const filled = state.prediction && state.mode === 'fill' && frame.prediction;
  const shown = state.map && frame.map && mapPainter(frame, state, look);
  for (let j = 0, at = 0; j < cut.height; j++)
    for (let i = 0, q = cut.index(0, j); i < cut.width; i++, q += cut.right, at += 4) {
      for (let c = 0; c < 3; c++) out[at + c] = grey[frame.grey[first[c] + q]];
      out[at + 3] = 255;
      if (filled) tint(out, at, frame, i < from ? 'prediction' : 'other', q, state, look);
      if (shown) blend(out, at, shown(frame.map[q]));
      if (frame.valid && !frame.valid[q] && (i + j) % 4 === 0) out[at] = out[at + 1] = out[at + 2] = 90;
    }
  return out;
}

function blend(out, at, colour, alpha = colour[3]/255) {
  for (let c = 0; c < 3; c++) out[at + c] = Math.floor((1 - alpha)*out[at + c] + alpha*colour[c] + 1e-6);
}

function tint(out, at, frame, what, index, state, look) {
  for (const k of classesAt(frame, what, index))
    if (!state.hidden.includes(k)) blend(out, at, look.palette[k - 1] ?? [128, 128, 128], state.opacity);
}

/** One picture: its canvas, what is drawn on it, and what a hand does there. */
class Plane {
  constructor(viewer, number) {
    this.viewer = viewer;
    this.number = number;
    this.zoom = 1;
    this.pan = [0, 0];                   // of the middle, in voxels
    this.box = element('div', 'mv-plane', viewer.stage);
    this.canvas = element('canvas', '', this.box);
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute('role', 'img');
    [this.voxels, this.painted] = [element('canvas'), element('canvas')];
    this.hands = new Hands(this);        // of viewer_hands.js
  }

  get cut() { return new Cut(this.viewer.frame, this.viewer.frame.planes[this.number], this.viewer.state.voxel); }

  /** Where the voxels lie on the canvas: scale and place of the corner, in its pixels. */
  fit(cut) {
    const scale = this.viewer.scale*this.ratio*this.zoom, [x, y] = cut.mm.map(mm => mm*scale);
    const middle = [cut.width/2 + this.pan[0], cut.height/2 + this.pan[1]];
    return {x, y, left: this.canvas.width/2 - middle[0]*x, top: this.canvas.height/2 - middle[1]*y};
  }

  /** Enlarge and move as another picture, whose voxels may be of another size. */
  zoomAs(other) {
    const {width, height} = other.cut, mine = this.cut, ratio = [mine.width/width, mine.height/height];
    this.zoom = other.zoom;
    this.pan = other.pan.map((at, k) => at*ratio[k]);
    this.draw();
  }

  resize(left, top, width, height) {
    this.ratio = window.devicePixelRatio || 1;
    Object.entries({left, top, width, height}).forEach(([k, v]) => { this.box.style[k] = `${v}px`; });
    [this.canvas.width, this.canvas.height] = [Math.round(width*this.ratio), Math.round(height*this.ratio)];
  }

  draw() {
    const cut = this.cut, {frame, state, look} = this.viewer, pen = this.canvas.getContext('2d'), fit = this.fit(cut);
    const slice = state.voxel[cut.plane.across];
    const shown = JSON.stringify([this.viewer.shown, {...state, voxel: slice, cross: null}, fit, this.canvas.width]);
    if (shown !== this.shown) this.paint(cut, fit);
    this.shown = shown;
    pen.drawImage(this.painted, 0, 0);
    if (frame.other && state.mode !== 'differ') this.drawWipe(pen, cut, fit);
    if (this.viewer.pointed && state.cross) this.drawCross(pen, cut, fit, state.voxel);
    const there = this.viewer.mirrored;  // in the slice that is shown?
    if (there && (cut.plane.across < 0 || there[cut.plane.across] === slice)) this.drawCross(pen, cut, fit, there, 20);
    this.drawSides(pen, cut, fit);
    const where = cut.plane.across < 0 ? '' : `, slice ${state.voxel[cut.plane.across] + 1} of ${frame.shape[cut.plane.across]}`;
    this.canvas.setAttribute('aria-label', `${look.name}${cut.plane.name ? `, ${cut.plane.name}` : ''}${where}`);
  }

  /** What does not change with the crosshair: the voxels of a slice, and lines around its labels. */
  paint(cut, fit) {
    const {frame, state, look} = this.viewer, pen = this.painted.getContext('2d');
    [this.painted.width, this.painted.height] = [this.canvas.width, this.canvas.height];
    [this.voxels.width, this.voxels.height] = [cut.width, cut.height];
    const image = new ImageData(pixels(frame, cut, state, look), cut.width, cut.height);
    this.voxels.getContext('2d').putImageData(image, 0, 0);
    pen.fillRect(0, 0, this.painted.width, this.painted.height);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(this.voxels, fit.left, fit.top, cut.width*fit.x, cut.height*fit.y);
    this.drawLabels(pen, cut, fit);
  }

  drawLabels(pen, cut, fit) {
    const {frame, state, look} = this.viewer, placed = new DOMMatrix([fit.x, 0, 0, fit.y, fit.left, fit.top]);
    const on = path => { const out = new Path2D(); out.addPath(path, placed); return out; };
    const line = (labels, ...ways) => {
      const path = on(edges(labels, cut.width, cut.height));
      for (const [width, colour] of ways) { pen.lineWidth = width*this.ratio; pen.strokeStyle = colour; pen.stroke(path); }
    };
    pen.lineCap = 'square';
    const numbers = look.classes.map((_, n) => n + 1).filter(k => !state.hidden.includes(k));
    const coloured = state.prediction && state.mode !== 'fill' && frame.prediction;
    const colourOf = k => `rgb(${look.palette[k - 1]})`;
    const inkOf = k => (DASHES[look.dashes[k - 1]] ? dashing(pen, colourOf(k), DASHES[look.dashes[k - 1]]) : colourOf(k));
    for (const k of coloured ? numbers : []) {
      if (state.mode === 'outline') line(predicted(frame, cut, state, k), [1.75, inkOf(k)]);
      else this.hatch(pen, on, cut, colourOf(k), this.differences(cut, k));
    }
    if (state.prediction && state.mode === 'fill' && frame.prediction) this.drawPatterns(pen, on, cut);
    const alone = !frame.prediction && !frame.map;  // then the truth tells its classes apart
    for (const k of state.truth && frame.truth ? (frame.overlapping || alone ? numbers : [0]) : [])
      line(labelsOf(frame, 'truth', cut, state.hidden, k), [3, '#000'], [1.25, alone ? inkOf(k) : '#fff']);
    if (state.region && frame.region) line(cut.values(frame.region), [3, '#000'], [1.25, '#fff']);
  }

  /** Masks of what only the prediction has of a class, and what only the truth, or the other prediction, has. */
  differences(cut, k) {
    const {frame, state} = this.viewer, differ = state.mode === 'differ';
    const found = differ ? labelsOf(frame, 'prediction', cut, state.hidden, k) : predicted(frame, cut, state, k);
    const against = labelsOf(frame, differ ? 'other' : 'truth', cut, state.hidden, k);
    return against ? [minus(found, against), minus(against, found)] : [];
  }

  /** Masks filled with lines, each of a direction of its own. */
  hatch(pen, on, cut, colour, wrong) {
    wrong.forEach((mask, n) => {
      pen.fillStyle = hatching(pen, colour, [FALLING, RISING][n]);
      pen.fill(on(runs(mask, cut.width, cut.height)));
    });
  }

  /** On fillings: what tells classes of one colour apart. */
  drawPatterns(pen, on, cut) {
    const {frame, state, look} = this.viewer;
    pen.globalAlpha = Math.min(1, 2*state.opacity);
    for (const [k, mask] of patterned(frame, cut, state, look)) {
      pen.fillStyle = hatching(pen, `rgb(${look.palette[k - 1]})`, look.hatches[k - 1]);
      pen.fill(on(runs(mask, cut.width, cut.height)));
    }
    pen.globalAlpha = 1;
  }

  /** Lines through a voxel, with a gap around it; of some length, or across the picture. */
  drawCross(pen, cut, fit, voxel, length = Infinity) {
    const [i, j] = cut.place(voxel), x = fit.left + (i + .5)*fit.x, y = fit.top + (j + .5)*fit.y;
    const gap = 8*this.ratio, end = gap + length*this.ratio, {width, height} = this.canvas;
    const arms = (at, size) => [[Math.max(0, at - end), at - gap], [at + gap, Math.min(size, at + end)]];
    pen.strokeStyle = CROSS;
    pen.lineWidth = this.ratio;
    pen.beginPath();
    for (const [a, b] of arms(x, width)) { pen.moveTo(a, y); pen.lineTo(b, y); }
    for (const [a, b] of arms(y, height)) { pen.moveTo(x, a); pen.lineTo(x, b); }
    pen.stroke();
  }

  /** The line between two predictions, and whose they are. */
  drawWipe(pen, cut, fit) {
    const {state, look} = this.viewer, x = fit.left + wipedFrom(this.viewer.frame, cut, state)*fit.x, pad = 6*this.ratio;
    for (const [thick, colour] of [[4, '#000'], [2, '#fff']]) {
      pen.fillStyle = colour;
      pen.fillRect(x - thick/2*this.ratio, 0, thick*this.ratio, this.canvas.height);
    }
    this.write(pen, look.sides[0], x - pad, 22*this.ratio, 'right', 'top');
    this.write(pen, look.sides[1], x + pad, 22*this.ratio, 'left', 'top');
  }

  /** White on black, to be read on every picture. */
  write(pen, text, x, y, align, base) {
    if (!text) return;
    pen.font = `600 ${13*this.ratio}px system-ui, sans-serif`;
    Object.assign(pen, {textAlign: align, textBaseline: base, lineWidth: 3*this.ratio, strokeStyle: '#000', fillStyle: '#fff'});
    pen.strokeText(text, x, y);
    pen.fillText(text, x, y);
  }

  /** Letters of the patient's sides, and a scale bar. */
  drawSides(pen, cut, fit) {
    const {width, height} = this.canvas, pad = 5*this.ratio, [left, right, top, bottom] = cut.plane.letters || [];
    const write = (...where) => this.write(pen, ...where);
    write(left, pad, height/2, 'left', 'middle');
    write(right, width - pad, height/2, 'right', 'middle');
    write(top, width/2, pad, 'center', 'top');
    write(bottom, width/2, height - pad, 'center', 'bottom');
    const {mm, pixels: length} = scaleBar(fit.x/cut.mm[0], width/4), unit = this.viewer.frame.unit || 'mm';
    for (const [thick, colour] of [[5, '#000'], [2, '#fff']]) {
      pen.fillStyle = colour;
      const extra = (thick - 2)/2*this.ratio;
      pen.fillRect(pad - extra, height - pad - 2*this.ratio - extra, length + 2*extra, thick*this.ratio);
    }
    write(`${mm} ${unit}`, pad, height - 2*pad - this.ratio, 'left', 'bottom');
  }

  /** Column and row under a pointer, as fractions of voxels. */
  under(event) {
    const box = this.canvas.getBoundingClientRect(), cut = this.cut, fit = this.fit(cut);
    const [x, y] = [(event.clientX - box.left)*this.ratio, (event.clientY - box.top)*this.ratio];
    return [cut, (x - fit.left)/fit.x, (y - fit.top)/fit.y];
  }
}

/** A round length in mm that takes at most some pixels. */
export function scaleBar(perMm, most) {
  const longest = most/perMm, power = 10**Math.floor(Math.log10(longest));
  const mm = [5, 2, 1].find(n => n*power <= longest)*power;
  return {mm: Number(mm.toPrecision(1)), pixels: mm*perMm};
}

const GAP = 4;  // pixels between pictures

/** Ways to place pictures: column and row of each. Side by side, below each other, and the first beside the others. */
function arrangements(extent) {
  const n = extent.length, row = extent.map((_, k) => [k, 0]), column = extent.map((_, k) => [0, k]);
  return n < 3 ? [row, column] : [row, extent.map((_, k) => (k ? [1, k - 1] : [0, 0])), column];
}

/** Boxes (left, top, width, height) of pictures in a stage, as large as fits. */
function fitted(extent, places, width, height) {
  const columns = [...new Set(places.map(([c]) => c))], inside = c => extent.filter((_, k) => places[k][0] === c);
  const wide = columns.map(c => Math.max(...inside(c).map(([w]) => w))), total = list => list.reduce((a, b) => a + b, 0);
  const tall = columns.map(c => total(inside(c).map(e => e[1]))), most = Math.max(...columns.map(c => inside(c).length));
  const scale = Math.min((width - GAP*(columns.length - 1))/total(wide), (height - GAP*(most - 1))/Math.max(...tall));
  const start = (width - scale*total(wide) - GAP*(columns.length - 1))/2;
  const boxes = extent.map(([w, h], k) => {
    const [c, r] = places[k], above = extent.filter((_, m) => places[m][0] === c && places[m][1] < r);
    const left = start + scale*total(wide.slice(0, c)) + GAP*c, top = scale*total(above.map(e => e[1])) + GAP*r;
    return [left, top, Math.floor(scale*w), Math.floor(scale*h)].map(Math.round);
  });
  return {scale, boxes, height: Math.max(...boxes.map(([, top, , h]) => top + h))};
}

export class Viewer {
  constructor(parent, look = {}, heard = () => {}) {
    this.look = {...DEFAULTS, ...look};
    this.heard = heard;                  // f(what changed by hand)
    this.state = {...STATE};
    this.root = element('div', 'mv', parent);
    this.root.viewer = this;             // for whoever wants to know what is shown
    element('style', '', this.root).textContent = STYLE;
    this.root.setAttribute('role', 'group');
    this.root.setAttribute('aria-label', this.look.name);
    this.stage = element('div', 'mv-stage', this.root);
    const bar = element('div', 'mv-bar', this.root);
    this.told = element('div', 'mv-told', bar);
    this.told.setAttribute('aria-live', 'polite');
    const save = element('button', 'mv-save', bar);
    save.textContent = 'PNG';
    save.title = 'save the picture';
    save.onclick = () => this.save();
    this.planes = [];
    this.watch = new ResizeObserver(() => this.layout());
    this.watch.observe(this.root);
  }

  /** Show another frame; slices, window and zoom stay. */
  show(frame, extent = null) {
    const size = one => String([one.shape, one.planes.length]), same = this.frame && size(this.frame) === size(frame);
    const before = String(this.extent);
    this.frame = frame;
    this.shown = (this.shown ?? 0) + 1;  // frames so far
    const mm = axis => frame.shape[axis]*frame.spacing[axis];
    this.extent = extent || this.extent || frame.planes.map(({row, col}) => [mm(col), mm(row)]);
    const middle = frame.shape.map(n => n >> 1), voxel = this.state.voxel || frame.voxel || middle;
    this.state.voxel = voxel.map((at, i) => clamp(at, 0, frame.shape[i] - 1));
    while (this.planes.length < frame.planes.length) this.planes.push(new Plane(this, this.planes.length));
    while (this.planes.length > frame.planes.length) this.planes.pop().box.remove();
    if (same && this.scale && before === String(this.extent)) this.draw();
    else this.layout();
  }

  /** Change what is seen. */
  set(change, quietly = false) {
    const new_ = {...this.state, ...change};
    if (change.voxel) new_.voxel = change.voxel.map((at, i) => clamp(at, 0, this.frame.shape[i] - 1));
    if (JSON.stringify(new_) === JSON.stringify(this.state)) return;
    this.state = new_;
    if (this.frame && this.scale) this.draw();
    if (!quietly) this.heard(Object.fromEntries(Object.keys(change).map(k => [k, this.state[k]])));
  }

  /** The stage is as large as the widest frame, in mm, so that nothing below it moves. */
  layout(width = this.root.clientWidth) {
    if (!width || !this.frame) return;
    const ways = arrangements(this.extent).map(places => ({places, ...fitted(this.extent, places, width, this.look.height)}));
    const best = ways.reduce((a, b) => (b.scale > 1.02*a.scale ? b : a));
    this.scale = best.scale;
    this.stage.style.height = `${best.height}px`;
    this.planes.forEach((plane, k) => plane.resize(...best.boxes[k]));
    this.draw();
  }

  draw() {
    for (const plane of this.planes) plane.draw();
    if (this.frame.map) drawLegend(this);  // of viewer_map.js
  }

  get pointed() { return this.look.pointed || this.frame.planes.length > 1; }

  /** After a picture was enlarged or moved by hand. */
  zoomed(plane) { plane.draw(); }

  /** A hand points at a voxel; null: at none. */
  point(voxel) {
    if (voxel) this.tellAt(voxel);
    else this.tell('');
  }

  tell(text) { this.told.textContent = text; }

  /** What is at a voxel, in words. */
  tellAt(voxel) {
    const {frame, state, look} = this, steps = strides(frame.shape), index = voxel.reduce((sum, at, i) => sum + at*steps[i], 0);
    const names = found => found.length ? found.map(k => look.classes[k - 1] ?? k).join(' + ') : NOTHING;
    const whole = voxel.map((at, i) => at + (frame.first?.[i] ?? 0));  // in the image that the frame is a part of
    const parts = [`voxel ${whole.join(', ')}`, `${this.placed(whole)} ${frame.unit || 'mm'}`];
    const [low, high] = frame.range[Math.min(state.channel, frame.range.length - 1)];
    const byte = frame.grey[state.channel*frame.grey.length/frame.channels + index];
    parts.push(`grey ${Number((low + byte/255*(high - low)).toPrecision(3))}`);
    const whose = {truth: 'truth', prediction: look.sides[0] || 'prediction', other: look.sides[1] || 'other prediction'};
    for (const [what, name] of Object.entries(whose))
      if (frame[what]) parts.push(`${name} ${names(classesAt(frame, what, index))}`);
    if (frame.map) parts.push(mapWords(frame, index));
    this.tell(parts.join(' · '));
  }

  /** Where a voxel lies, in mm, in words: in the patient (L 12.0 A 3.5 S 40.0), where that is known. */
  placed(voxel) {
    const {affine, spacing} = this.frame;
    if (!affine) return voxel.map((at, i) => (at*spacing[i]).toFixed(1)).join(', ');
    const mm = affine.slice(0, 3).map(row => row.slice(0, 3).reduce((sum, a, i) => sum + a*voxel[i], row[3]));
    return mm.map((x, i) => `${'RAS LPI'[x < 0 ? i + 4 : i]} ${Math.abs(x).toFixed(1)}`).join(' ');
  }

  get canvases() { return this.planes.map(plane => plane.canvas); }

  /** All planes as one picture. */
  async picture() {
    const {canvases} = this, gap = 4, out = element('canvas');
    out.width = canvases.reduce((sum, c) => sum + c.width + gap, -gap);
    out.height = Math.max(...canvases.map(c => c.height));
    const pen = out.getContext('2d');
    let x = 0;
    for (const canvas of canvases) { pen.drawImage(canvas, x, 0); x += canvas.width + gap; }
    return new Promise(done => out.toBlob(done, 'image/png'));
  }

  async save() {
    const link = element('a'), download = `${this.look.name.replace(/[^\w.-]+/g, '_')}.png`;
    Object.assign(link, {href: URL.createObjectURL(await this.picture()), download}).click();
    URL.revokeObjectURL(link.href);
  }

  remove() { this.watch.disconnect(); this.root.remove(); }
}

const bytes = value => new Uint8Array(value.buffer ?? value, value.byteOffset ?? 0, value.byteLength);

/** A frame from what Python sends: names of arrays are replaced by the arrays of the pool. */
export function unpacked(frame, pool) {
  const out = {...frame}, wide = {2: Uint16Array, 4: Uint32Array}[frame.labelBytes];
  for (const name of ['grey', 'truth', 'prediction', 'other', 'valid', 'map', 'region'])
    out[name] = frame[name] == null ? null : pool(frame[name]);
  for (const name of wide ? ['truth', 'prediction', 'other'] : [])
    if (out[name]) out[name] = new wide(out[name].slice().buffer);
  if (out.map) out.map = new Uint16Array(out.map.slice().buffer);
  return out;
}
