// A map of scores in a page, and the cases of the cell that is pressed; those with a picture open in the viewer.
// Needs Heat (heat.js), inflated (packed.js), and what Python left in the page: #misas-cells, #misas-scores, #misas-tried.

const MOST = 24;  // cases that are listed at first
const by = id => document.getElementById(`misas-${id}`);
const write = (parent, tag, text) => {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
};

const fill = (menu, texts, heard) => {
  menu.replaceChildren(...texts.map((text, k) => new Option(text, k)));
  menu.closest('label').hidden = texts.length < 2;
  menu.addEventListener('change', heard);
};

/** A score as people read it. */
function scoreText(score, unit) {
  if (Number.isNaN(score)) return 'undefined';
  const text = Number.isFinite(score) ? score.toFixed(3) : 'infinite';
  return unit ? `${text} ${unit}` : text;
}

/** How bad a score is: the higher, the worse. */
const BAD = {higher: score => -score, lower: score => score, zero: Math.abs};

class Cells {
  constructor(known, scores, tried) {
    Object.assign(this, {known, scores, tried});
    this.cell = known.start;
    this.heat = new Heat(by('heat'), known.palette, (what, cell) => { if (what === 'opened') this.open(cell); });
    this.heat.build(known.blocks, known.same, 'scores of the study');
    this.menus = {metric: by('cells-metric'), cls: by('cells-class'), group: by('cells-group'), order: by('cells-order')};
    const {metric, cls, group, order} = this.menus, anew = () => { this.paint(); this.list(); };
    fill(metric, known.metrics.map(one => one.name), () => { this.fillOrder(); anew(); });
    fill(cls, known.classes, anew);
    fill(group, known.groups.map(one => one.label), anew);
    fill(order, [], () => this.list());
    order.closest('label').hidden = false;
    by('more').addEventListener('click', () => this.more());
    this.fillOrder();
    this.paint();
    this.heat.mark(this.cell);
    this.list();
    by('map-shown').hidden = false;
  }

  get at() { return Object.fromEntries(Object.entries(this.menus).map(([name, menu]) => [name, Number(menu.value)])); }
  get metric() { return this.known.metrics[this.at.metric]; }

  fillOrder() {
    const before = this.menus.order.value || 0, texts = [...this.metric.orders, 'by name'];
    this.menus.order.replaceChildren(...texts.map((text, k) => new Option(text, k)));
    this.menus.order.value = before;
  }

  paint() {
    const {metric, cls, group} = this.at, {metrics, classes, maps} = this.known;
    this.heat.paint(maps[(group*metrics.length + metric)*classes.length + cls]);
  }

  score(cell, person) {
    const {metric, cls} = this.at, {metrics, classes, cases} = this.known;
    return this.scores[((cell*metrics.length + metric)*classes.length + cls)*cases.length + person];
  }

  /** The cases of the cell and the group, in their order. */
  cases() {
    const {known, cell} = this, bad = BAD[this.metric.better] ?? BAD.higher, order = this.at.order;
    const here = known.groups[this.at.group].members.filter(person => this.tried[cell*known.cases.length + person]);
    const found = here.map(person => ({person, score: this.score(cell, person)}));
    if (order === 2) return found;
    const gone = found.filter(one => Number.isNaN(one.score)), rest = found.filter(one => !Number.isNaN(one.score));
    const compared = (a, b) => { const [x, y] = [bad(a.score), bad(b.score)]; return x === y ? 0 : y - x; };
    rest.sort((a, b) => (order ? compared(b, a) : compared(a, b)));
    return [...rest, ...gone];
  }

  open(cell) {
    this.cell = cell;
    this.list();
  }

  /** The gallery of the cell. */
  list() {
    this.found = this.cases();
    this.listed = 0;
    by('tiles').replaceChildren();
    const order = this.menus.order.selectedOptions[0].textContent, count = this.found.length;
    by('cell-title').textContent = `${this.place()}: ${count} case${count === 1 ? '' : 's'}, ${order}`;
    by('cell-said').hidden = !count || this.found.some(({person}) => this.picture(person));
    this.more();
  }

  place() {
    let left = this.cell;
    for (const {places} of this.known.blocks) {
      if (left < places.length) return places[left];
      left -= places.length;
    }
  }

  more() {
    for (const one of this.found.slice(this.listed, this.listed + MOST)) this.addTile(one);
    this.listed = Math.min(this.listed + MOST, this.found.length);
    const left = this.found.length - this.listed;
    by('more').hidden = !left;
    by('more').textContent = `show ${Math.min(left, MOST)} more of ${left}`;
  }

  /** What is stored of a case in the cell. */
  picture(person) { return this.known.pictures[`${this.cell} ${person}`]; }

  addTile({person, score}) {
    const item = write(by('tiles'), 'li', ''), stored = this.picture(person);
    const tile = write(item, stored ? 'button' : 'div', '');
    if (stored) {
      const image = write(tile, 'img', '');
      Object.assign(image, {src: `data:image/png;base64,${stored.thumbnail}`, alt: 'picture'});
      tile.type = 'button';
      tile.title = 'show this picture in the viewer';
      tile.addEventListener('click', () => this.show(tile, stored.number));
      tile.setAttribute('aria-pressed', String(this.shown === stored.number));
    }
    write(tile, 'span', this.known.cases[person]);
    write(tile, 'span', scoreText(score, this.metric.unit));
  }

  /** A case in the viewer. */
  show(tile, number) {
    this.shown = number;
    document.getElementById('misas').stage.go([number, 0]);
    for (const one of by('tiles').querySelectorAll('button')) one.setAttribute('aria-pressed', String(one === tile));
    by('look').scrollIntoView({block: 'nearest'});
  }
}

try {
  const [text, scores, tried] = await Promise.all(['misas-cells', 'misas-scores', 'misas-tried'].map(inflated));
  const map = new Cells(JSON.parse(new TextDecoder().decode(text)), new Float32Array(scores.buffer), tried);
  by('map').cells = map;  // for whoever wants to know what is shown
} catch (error) { by('map-message').textContent = `The map cannot be shown: ${error.message}`; }
