// A table of scores as a heat map: its cells are buttons, found by mouse and arrow keys; numbers are always readable.
// Blocks: [{title, head, rows, columns, places}]; cells are counted row by row through all blocks. A map has for each cell
// [text, level (0 to 255; -1: no number), marks, note], and what the ends of its colours mean.

const LEAST = 26;  // pixels of a cell: what is narrower cannot be read
const LONG = 5;  // characters that do not fit above it

const STYLE = `
.mh { container-type: inline-size; min-width: 0; color: var(--jp-ui-font-color1, CanvasText);
  font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif) }
.mh-wide { overflow-x: auto; padding: 2px }
.mh table { width: 100%; min-width: var(--least); table-layout: fixed; border-collapse: separate; border-spacing: 2px;
  font-variant-numeric: tabular-nums }
.mh col.names { width: var(--names) }
.mh th { font-weight: normal; overflow-wrap: anywhere; hyphens: auto; white-space: normal; text-align: center; border: 0; padding: 1px 0;
  font-size: clamp(10px, var(--room), 13px) }
.mh th[scope=row] { text-align: right; padding-right: 3px; position: sticky; left: 0;
  background: var(--paper, var(--jp-layout-color0, Canvas)) }
.mh .mh-title th { text-align: left; font-weight: 600; padding-top: 6px; font-size: 13px }
.mh td { padding: 0; border: 0 }
@container (max-width: 520px) { .mh th.long { writing-mode: vertical-rl; padding: 0 } }
.mh button { display: block; width: 100%; min-height: 30px; padding: 2px 0; border: 0; border-radius: 2px; cursor: pointer;
  print-color-adjust: exact; font: inherit; line-height: 1.15; font-size: clamp(9px, var(--room), 13px); overflow: hidden; outline-offset: -1px }
.mh button small { display: block; font-size: .8em }
.mh button.none { color: inherit; box-shadow: inset 0 0 0 1px;
  background: repeating-linear-gradient(45deg, transparent 0 5px, color-mix(in srgb, currentColor 22%, transparent) 5px 7px) }
.mh button.same { border-radius: 9px }
.mh td[aria-selected=true] button { outline: 3px solid #ff2fd0 }
.mh button:focus-visible { outline: 3px solid #ff2fd0; box-shadow: inset 0 0 0 3px #fff }
.mh-told { min-height: 2.8em; font-weight: 600; overflow-wrap: anywhere }
.mh-legend { display: flex; flex-wrap: wrap; gap: 2px 8px; align-items: center }
.mh-scale { display: flex; gap: 8px; align-items: center }
.mh-scale canvas { flex: 0 1 110px; min-width: 30px; height: 12px }
.mh-legend > span:last-child { flex: 1 1 100% }
`;

const element = (tag, name, parent) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (parent) parent.append(made);
  return made;
};

const write = (parent, tag, text, name = '') => Object.assign(element(tag, name, parent), {textContent: text});

/** Black or white, whichever is easier to read on a colour. */
export function ink([r, g, b]) {
  const linear = [r, g, b].map(v => (v <= 10 ? v/3295 : ((v/255 + .055)/1.055)**2.4));
  const light = .2126*linear[0] + .7152*linear[1] + .0722*linear[2];
  return light > .179 ? '#000' : '#fff';
}

export class Heat {
  constructor(parent, palette, heard = () => {}) {
    [this.palette, this.heard] = [palette, heard];   // heard(what, cell): 'at' where somebody goes, 'opened' where they press
    this.root = element('div', 'mh', parent);
    this.root.heat = this;                           // for whoever wants to know what is shown
    element('style', '', this.root).textContent = STYLE;
    this.table = element('table', '', element('div', 'mh-wide', this.root));
    this.table.setAttribute('role', 'grid');
    this.told = element('div', 'mh-told', this.root);
    this.told.setAttribute('aria-live', 'polite');
    this.legend = element('div', 'mh-legend', this.root);
    this.table.addEventListener('keydown', event => this.key(event));
  }

  /** Rows and columns. */
  build(blocks, same, name) {
    this.blocks = blocks;
    [this.rows, this.cells] = [[], []];              // of each row: its first cell, and one more than its last
    this.table.replaceChildren();
    this.table.setAttribute('aria-label', name);
    const most = Math.max(...blocks.map(block => block.columns.length));
    const longest = Math.max(...blocks.flatMap(block => [block.head, ...block.rows]).map(text => text.length));
    this.root.style.setProperty('--names', `min(${Math.min(longest + 2, 16)}ch, 24cqi)`);
    this.table.style.setProperty('--least', `calc(var(--names) + ${LEAST*most}px)`);
    this.table.style.maxWidth = `calc(var(--names) + ${110*most}px)`;
    this.root.style.setProperty('--room', `calc((100cqi - var(--names))/${3.2*most})`);
    const columns = element('colgroup', '', this.table);
    element('col', 'names', columns);
    for (let i = 0; i < most; i++) element('col', '', columns);
    for (const block of blocks) this.buildBlock(block, most);
    for (const cell of same) this.cells[cell].classList.add('same');
  }

  buildBlock(block, most) {
    const body = element('tbody', '', this.table);
    if (block.title) write(element('tr', 'mh-title', body), 'th', block.title).colSpan = most + 1;
    const heads = element('tr', '', body);
    write(heads, 'th', block.head);
    for (const text of block.columns) write(heads, 'th', text, text.length > LONG ? 'long' : '').scope = 'col';
    for (const name of block.rows) {
      const row = element('tr', '', body), first = this.cells.length;
      write(row, 'th', name).scope = 'row';
      for (let i = 0; i < block.columns.length; i++) this.addCell(row);
      this.rows.push([first, this.cells.length]);
    }
  }

  addCell(row) {
    const button = element('button', '', element('td', '', row)), cell = this.cells.length;
    button.type = 'button';
    button.tabIndex = -1;
    button.onclick = () => { this.go(cell); this.heard('opened', cell); };
    button.onpointerenter = () => this.tell(cell);
    button.onpointerleave = () => this.tell(this.at);
    this.cells.push(button);
  }

  /** Numbers and colours. */
  paint(map) {
    this.map = map;
    this.cells.forEach((button, cell) => {
      const [text, level, marks] = map.cells[cell], colour = this.palette[level];
      button.replaceChildren(text);
      if (marks) write(button, 'small', marks);
      button.classList.toggle('none', level < 0);
      button.style.background = colour ? `rgb(${colour})` : '';
      button.style.color = colour ? ink(colour) : '';
      button.setAttribute('aria-label', this.words(cell));
    });
    this.paintLegend(map);
    if (this.at !== undefined) this.tell(this.at);
  }

  paintLegend({low, high, label, marks}) {
    this.legend.replaceChildren();
    write(this.legend, 'span', label);
    const scale = element('span', 'mh-scale', this.legend);
    write(scale, 'span', low);
    const bar = element('canvas', '', scale), pen = bar.getContext('2d');
    [bar.width, bar.height] = [this.palette.length, 1];
    this.palette.forEach((colour, i) => { pen.fillStyle = `rgb(${colour})`; pen.fillRect(i, 0, 1, 1); });
    write(scale, 'span', high);
    write(this.legend, 'span', marks);
  }

  /** Where the marker is. */
  mark(at) {
    this.cells.forEach((button, cell) => {
      button.parentElement.setAttribute('aria-selected', cell === at);
      button.tabIndex = cell === at ? 0 : -1;
    });
    this.at = at;
    this.tell(at);
  }

  words(cell) {
    let left = cell;
    for (const {places} of this.blocks) {
      if (left < places.length) return `${places[left]}: ${this.map.label} ${this.map.cells[cell][3]}`;
      left -= places.length;
    }
    return '';
  }

  tell(cell) { this.told.textContent = this.words(cell); }

  go(cell) {
    this.cells[cell].focus();
    this.mark(cell);
    this.heard('at', cell);
  }

  /** To the next cell in a direction. */
  key(event) {
    const at = this.cells.indexOf(event.target), row = this.rows.findIndex(([first, end]) => at >= first && at < end);
    if (row < 0) return;
    const [first, end] = this.rows[row];
    const under = by => {
      const [begin, stop] = this.rows[Math.min(Math.max(row + by, 0), this.rows.length - 1)];
      return Math.min(begin + at - first, stop - 1);
    };
    const wanted = {
      ArrowLeft: () => Math.max(at - 1, first), ArrowRight: () => Math.min(at + 1, end - 1),
      ArrowUp: () => under(-1), ArrowDown: () => under(1), Home: () => first, End: () => end - 1,
    }[event.key];
    if (!wanted) return;
    event.preventDefault();
    event.stopPropagation();                         // a notebook has arrow keys of its own
    this.go(wanted());
  }
}

export default {
  render({model, el}) {
    const heat = new Heat(el, model.get('palette'), (what, cell) => {
      model.set(what, cell);
      model.set('hand', model.get('hand') + 1);  // see InPage
      model.save_changes();
    });
    const paint = () => {
      const [metrics, classes] = model.get('sizes');
      heat.paint(model.get('maps')[(model.get('group')*metrics + model.get('metric'))*classes + model.get('cls')]);
    };
    const mark = () => heat.mark(model.get('at'));
    const build = () => { heat.build(model.get('blocks'), model.get('same'), model.get('name')); paint(); mark(); };
    const heard = [['change:blocks', build], ['change:maps', paint], ['change:at', mark],
      ...['group', 'metric', 'cls'].map(name => [`change:${name}`, paint])];
    for (const [name, f] of heard) model.on(name, f);
    build();
    return () => { for (const [name, f] of heard) model.off(name, f); };
  },
};
