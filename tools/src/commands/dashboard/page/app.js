// The page of `pstorage dashboard`: asks for what it shows, and draws it. Whatever comes from the cluster becomes text nodes and
// attributes, never HTML.
'use strict';

/* ---- Elements ---- */

const $ = (id) => document.getElementById(id);

function build(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value == null || value === false) continue;
    if (name === 'style') Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}
const el = (tag, props, ...children) => build(document.createElement(tag), props, children);
const svg = (tag, props, ...children) => build(document.createElementNS('http://www.w3.org/2000/svg', tag), props, children);

/** Makes `old` look like `fresh`, touching only what differs: focus, selection and scrolling stay. */
function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) === value) continue;
    // The security policy lets styles be set in this way only.
    if (name === 'style') old.style.cssText = fresh.style.cssText;
    else old.setAttribute(name, value);
  }
  fill(old, [...fresh.childNodes]);
}
function fill(parent, fresh) {
  const old = [...parent.childNodes];
  const wanted = fresh.flat(Infinity).filter((node) => node != null && node !== false);
  const nodes = wanted.map((node) => (node instanceof Node ? node : new Text(node)));
  nodes.forEach((node, n) => (old[n] ? morph(old[n], node) : parent.append(node)));
  old.slice(nodes.length).forEach((node) => node.remove());
}

/* ---- Words ---- */

function scaled(value, units, step) {
  let unit = 0;
  while (value >= step && unit + 1 < units.length) [value, unit] = [value / step, unit + 1];
  const digits = unit > 0 && value < 100 ? 1 : 0;
  return [value.toFixed(digits), units[unit]];
}
const bytes = (n) => scaled(n, ['B', 'KB', 'MB', 'GB', 'TB', 'PB'], 1024).join(' ');
const count = (n) => Math.round(n).toLocaleString('en');
const rate = (n) => bytes(n) + '/s';
const ms = (us) => (us >= 1e6 ? (us / 1e6).toFixed(1) + ' s' : (us / 1000).toFixed(us < 9950 ? 1 : 0) + ' ms');
const plural = (n, one, many = one + 's') => `${count(n)} ${n === 1 ? one : many}`;
const percent = (part, all) => (all ? (100 * part) / all : 0);
/** Never rounded up to "all". */
const share = (part, all) => (all && part < all ? (Math.floor(percent(part, all) * 100) / 100).toFixed(2) : '100') + ' %';

function duration(ms) {
  const s = Math.round(ms / 1000);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s / 60) % 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s / 3600) % 24)} h`;
}
const clock = (ms) => new Date(ms).toLocaleTimeString('en-GB');
const day = (ms) => new Date(ms).toLocaleDateString('en-GB', { weekday: 'long', day: 'numeric', month: 'long', year: 'numeric' });

/** `verdict` and `mood` as the classes of the style sheet. */
const MOOD = { ok: 'good', unknown: 'muted', warning: 'warn', error: 'bad', plain: '', good: 'good', warn: 'warn', bad: 'bad', info: '', err: 'bad' };

/* ---- What is known, and asking for it ---- */

const state = {
  status: null,
  /** When this program answered last, and why it does not. */
  reachedMs: 0,
  unreachable: null,
  /** Columns, as they came. */
  samples: { number: [] },
  servers: null,
  opened: new Set(),
  closed: new Set(),
  events: null,
  eventsLimit: 100,
  clients: null,
  allFindings: false,
  cursorMs: null,
};
/** Clusters of so many servers are shown opened. */
const SMALL = 40;

async function get(path) {
  const answer = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  return answer.json();
}

async function askSamples() {
  const have = state.samples;
  const last = have.number.at(-1) ?? 0;
  if (last === state.status.last_sample) return;
  const more = await get(`api/samples?after=${last}`);
  const from = state.status.unix_ms - state.status.window_ms;
  const gone = (have.unix_ms ?? []).filter((at) => at < from).length;
  for (const [name, column] of Object.entries(more)) have[name] = [...(have[name] ?? []).slice(gone), ...column];
}

let serversAsked = 0;
async function askServers() {
  const turn = ++serversAsked;
  const query = new URLSearchParams();
  if (state.opened.size) query.set('open', [...state.opened].join(','));
  if (state.status.cs?.all <= SMALL) query.set('all', 1);
  if ($('unwell').checked) query.set('unwell', 1);
  const find = $('find').value.trim();
  // Not by URLSearchParams: it writes blanks as '+'.
  const tree = await get(`api/servers?${query}${find ? '&find=' + encodeURIComponent(find) : ''}`);
  // While somebody types, answers may overtake one another.
  if (turn === serversAsked) state.servers = tree;
}

let eventsAre = null;
async function askEvents() {
  const wanted = `limit=${state.eventsLimit}&least=${$('least').value}`;
  const are = `${wanted} ${state.status.last_event}`;
  if (are === eventsAre) return;
  state.events = await get(`api/events?${wanted}`);
  eventsAre = are;
}

async function askClients() {
  if ($('clients-card').open) state.clients = await get('api/clients');
}

async function ask(...what) {
  try {
    if (!what.length) {
      state.status = await get('api/status');
      what = [askSamples, askServers, askEvents, askClients];
    }
    await Promise.all(what.map((one) => one()));
    [state.reachedMs, state.unreachable] = [Date.now(), null];
  } catch (error) {
    state.unreachable = error.message;
  }
  draw();
}

let timer = null;
async function goOn() {
  clearTimeout(timer);
  await ask();
  // A page that nobody sees asks nothing.
  if (!document.hidden) timer = setTimeout(goOn, Math.max(1000, state.status?.refresh_ms ?? 1000));
}

/* ---- What is wrong ---- */

function finding(mood, title, text, todo, more) {
  const sign = { bad: '✖', warn: '▲', good: '✔' }[mood] ?? '?';
  return el('div', { class: `finding ${mood}` },
    el('div', {}, el('span', { class: 'sign', 'aria-hidden': true }, sign), el('strong', {}, title), text && ': ', text),
    todo && el('div', { class: 'todo' }, todo), more);
}
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const ofCheck = (f) => finding(MOOD[f.verdict], capital(f.check) + (f.subject ? ' ' + f.subject : ''), f.found, f.todo);

/** The page's own troubles; figures are old then. */
function silence(s) {
  if (state.unreachable) {
    const since = state.reachedMs ? `for ${duration(Date.now() - state.reachedMs)}` : '';
    return finding('bad', `The dashboard does not answer ${since}`, state.unreachable,
      `see whether 'pstorage dashboard' still runs${s ? ' on ' + s.host : ''}, and can be reached from here`);
  }
  if (s.current) return null;
  const trouble = s.trouble && el('pre', {}, s.trouble);
  return s.age_ms == null
    ? finding('bad', 'No metadata server has answered yet', '', '', trouble)
    : finding('bad', 'No metadata server answers', `all below is ${duration(s.age_ms)} old`,
      'start the metadata servers: without most of them files can\'t be opened, and nothing is repaired', trouble);
}

function alarm(s) {
  const nodes = [];
  const silent = silence(s);
  if (silent) nodes.push(silent);
  const wrong = (s?.findings ?? []).filter((f) => f.verdict === 'error' || f.verdict === 'warning');
  const errors = wrong.filter((f) => f.verdict === 'error').length;
  const shown = state.allFindings ? wrong : wrong.slice(0, Math.min(Math.max(3, errors), 8));
  nodes.push(...shown.map(ofCheck));
  const more = wrong.length - shown.length + (state.allFindings ? s.more_findings : 0);
  if (more > 0) {
    nodes.push(state.allFindings
      ? el('span', { class: 'muted' }, `and ${more} more: pstorage doctor`)
      : el('button', { class: 'more', 'data-act': 'all-findings' }, `${plural(more, 'more warning')}`));
  }
  if (s?.fs && !silent && !wrong.length) {
    nodes.push(finding('good', 'All is well', `${plural(s.findings.length, 'check')} passed, nothing is to be done`));
  }
  fill($('alarm'), nodes);
}

/* ---- At a glance ---- */

const facts = (...pairs) => el('dl', { class: 'facts' }, pairs.map(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));
const bar = (...parts) => el('div', { class: 'bar' },
  parts.filter(([, width]) => width > 0).map(([mood, width]) => el('i', { class: mood, style: { width: `${width}%` } })));
const card = (title, ...children) => el('article', { class: 'card' }, el('h2', {}, title), children);

function space(s) {
  const used = s.fs.total_bytes - s.fs.free_bytes;
  const filled = percent(used, s.fs.total_bytes);
  return card('Space',
    el('p', { class: 'big' }, bytes(s.fs.available_bytes), el('small', {}, ' for new data')),
    bar([filled >= 95 ? 'bad' : filled >= 80 ? 'warn' : '', filled]),
    facts(['on disks', bytes(s.fs.total_bytes)],
      ['free', bytes(s.fs.free_bytes)],
      ['used by all replicas', `${bytes(used)}, ${filled.toFixed(1)} %`],
      ['data, counted once', bytes(s.fs.used_bytes)],
      ['licence', s.license]));
}

function machines(s) {
  const active = s.cs.by_status.active ?? 0;
  const up = s.mds.filter((m) => m.mood !== 'bad').length;
  const mood = { inactive: 'warn', offline: 'bad', failed: 'bad' };
  const others = Object.entries(s.cs.by_status).filter(([status]) => status !== 'active');
  return card('Servers',
    el('p', { class: 'big' }, `${count(active)} of ${count(s.cs.all)}`, el('small', {}, ' CS active')),
    bar(['good', percent(active, s.cs.all)], ...others.map(([status, n]) => [mood[status], percent(n, s.cs.all)])),
    facts(...others.map(([status, n]) => [status, el('b', { class: mood[status] }, count(n))]),
      ...(s.cs.draining ? [['being removed', count(s.cs.draining)]] : []),
      ['metadata servers', el('span', { class: up < s.mds.length ? 'bad' : '' }, `${up} of ${s.mds.length} answer`)],
      ['master', (s.mds.find((m) => m.master) ?? { addr: 'none' }).addr],
      ['master for', duration(s.epoch_uptime_ms)],
      ['clients', count(s.clients)]));
}

function chunks(s) {
  const total = s.chunks.total;
  // The first six are exclusive: each chunk is in one of them.
  const exclusive = ['healthy', 'standby', 'degraded', 'urgent', 'blocked', 'offline'];
  const there = s.chunk_states.filter((c) => c.count > 0 && c.state !== 'healthy');
  return card('Chunks',
    el('p', { class: 'big ' + MOOD[s.chunks_mood] }, total ? share(s.chunks.healthy, total) : 'none', el('small', {}, total ? ' healthy' : ' yet')),
    bar(...exclusive.map((name) => s.chunk_states.find((c) => c.state === name)).map((c) => [c.mood, percent(c.count, total)])),
    el('ul', { class: 'states' }, there.map((c) => el('li', {},
      el('b', { class: MOOD[c.mood] }, count(c.count) + ' ' + c.state), el('span', { class: 'muted' }, ': ' + c.meaning)))),
    facts(['chunks', count(total)], ['files', count(s.fs.files)]));
}

function repair(s) {
  const r = s.repair;
  const todo = r.waiting + r.copying;
  const policy = s.default_policy;
  return card('Repair',
    todo ? el('p', { class: 'big' }, count(todo), el('small', {}, ' chunks to be copied'))
      : el('p', { class: 'big' }, r.without_place ? count(r.without_place) : 'Nothing', el('small', {}, r.without_place ? ' chunks have no place to go' : ' to be copied')),
    todo ? bar(['good', percent(r.done, r.done + todo)]) : bar(),
    facts(...(todo ? [['under way', count(r.copying)], ['copied', count(r.done)], ['pace', `${r.chunks_per_s.toFixed(1)} chunks/s`],
      ['time left', r.seconds_left == null ? 'not known yet' : duration(r.seconds_left * 1000)]] : []),
    ...(todo && r.without_place ? [['without a place', el('b', { class: 'bad' }, count(r.without_place))]] : []),
    ['copied by this master', count(r.copies_total)],
    ['replicas of new files', String(policy.normal)],
    ['at least, to write', String(policy.minimum)],
    ['each on another', policy.domain]));
}

/* ---- Curves ---- */

const PLOTS = [
  { title: 'Throughput', series: [['a', 'read', 'read_bytes_per_s'], ['b', 'write', 'write_bytes_per_s']], text: rate, base: 1024, least: 1024 },
  { title: 'Operations', series: [['a', 'read', 'read_ops_per_s'], ['b', 'write', 'write_ops_per_s']], text: (n) => count(n) + '/s', base: 1000, least: 10 },
  { title: 'Latency', lines: true, series: [['a', 'disks', 'disk_mean_us'], ['b', 'requests', 'request_mean_us']], text: ms, base: 1000, least: 1000 },
];
const HEIGHT = 150, LEFT = 64, BOTTOM = 18, TOP = 8;

/** A round number that is not below `most`: its half is one, too. Of bytes within each unit. */
function ceiling(most, base, least) {
  most = Math.max(most, least);
  const unit = base ** Math.floor(Math.log(most) / Math.log(base) + 1e-9);
  const rest = most / unit;
  const ten = 10 ** Math.floor(Math.log10(rest) + 1e-9);
  return unit * ten * [1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10].find((n) => n * ten >= rest - 1e-9);
}

/** Lines, and what is below them; broken where nothing was heard for a while. */
function paths(kind, lines, times, values, x, y, gapMs) {
  const pieces = [];
  times.forEach((at, n) => {
    if (n === 0 || at - times[n - 1] > gapMs) pieces.push([]);
    pieces.at(-1).push([x(at).toFixed(1), y(values[n]).toFixed(1)]);
  });
  const line = (points) => points.map(([px, py], n) => `${n ? 'L' : 'M'}${px} ${py}`).join('');
  const area = (points) => `${line(points)}L${points.at(-1)[0]} ${y(0)}L${points[0][0]} ${y(0)}Z`;
  return [!lines && svg('path', { class: `area ${kind}`, d: pieces.map(area).join('') }), svg('path', { class: kind, d: pieces.map(line).join('') })];
}

function plot({ title, lines, series, text, base, least }, width, nowMs) {
  const s = state.samples, times = s.unix_ms ?? [];
  const fromMs = Math.max(nowMs - state.status.window_ms, Math.min(times[0] ?? nowMs, nowMs - 60000));
  const x = (at) => LEFT + ((at - fromMs) / (nowMs - fromMs)) * (width - LEFT);
  const top = ceiling(Math.max(0, ...series.flatMap(([, , name]) => s[name] ?? [])), base, least);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const grid = [0, 0.5, 1].map((part) => [
    svg('line', { class: 'grid', x1: LEFT, x2: width, y1: y(top * part), y2: y(top * part) }),
    svg('text', { x: LEFT - 8, y: y(top * part) + 4, 'text-anchor': 'end' }, part ? text(top * part) : '0'),
  ]);
  const stepMs = [15000, 30000, 60000, 120000].find((step) => (nowMs - fromMs) / step <= 6) ?? 120000;
  const ticks = [];
  for (let at = Math.ceil(fromMs / stepMs) * stepMs; at <= nowMs; at += stepMs) {
    if (x(at) > LEFT + 20 && x(at) < width - 20) {
      ticks.push(svg('text', { x: x(at), y: HEIGHT - 2, 'text-anchor': 'middle' }, clock(at).slice(0, stepMs < 60000 ? 8 : 5)));
    }
  }
  const gapMs = 3 * state.status.refresh_ms + 2000;
  const at = state.cursorMs == null ? times.length - 1 : nearest(times, state.cursorMs);
  const cursor = state.cursorMs != null && at >= 0
    && svg('line', { class: 'cursor', x1: x(times[at]), x2: x(times[at]), y1: TOP, y2: HEIGHT - BOTTOM });
  const values = series.map(([kind, name, column]) => el('span', {}, el('i', { class: kind }), `${name} `,
    el('b', {}, at < 0 ? '-' : text(s[column][at]))));
  return el('article', { class: 'card plot' },
    el('h2', {}, title), ' ', cursor ? el('span', { class: 'muted' }, 'at ' + clock(times[at])) : '',
    el('div', { class: 'legend' }, values),
    svg('svg', { viewBox: `0 0 ${width} ${HEIGHT}`, preserveAspectRatio: 'none', 'data-from': fromMs, 'data-to': nowMs, role: 'img', 'aria-label': title },
      grid, ticks, series.map(([kind, , name]) => paths(kind, lines, times, s[name] ?? [], x, y, gapMs)), cursor));
}
function nearest(times, at) {
  return times.reduce((best, time, n) => (Math.abs(time - at) < Math.abs(times[best] - at) ? n : best), 0);
}

/* ---- Servers ---- */

/** Two cells; a server that is away does not tell. */
function roomCells(node) {
  if (!node.total_bytes) return [el('td', { class: 'muted' }, '-'), el('td', { class: 'muted' }, '-')];
  const filled = percent(node.total_bytes - node.free_bytes, node.total_bytes);
  return [el('td', {}, el('span', { class: 'used' }, `${filled.toFixed(0)} %`, bar([filled >= 95 ? 'bad' : filled >= 80 ? 'warn' : '', filled]))),
    el('td', { title: `of ${bytes(node.total_bytes)}` }, bytes(node.free_bytes))];
}

const rateCell = (n) => el('td', { class: n ? null : 'muted' }, n ? rate(n) : '-');

const mdsTag = (id) => {
  const m = state.status.mds.find((m) => m.mds === id);
  return el('span', { class: `tag ${MOOD[m?.mood ?? 'plain']}` }, `MDS#${id}`);
};

function placeRows(place, depth) {
  const open = place.open && !state.closed.has(place.id);
  const unwell = place.unwell ? el('b', { class: MOOD[place.mood] }, `${count(place.unwell)} of ${count(place.servers)} not well`) : plural(place.servers, 'server');
  const row = el('tr', { class: `place d${depth}` },
    el('td', {}, el('button', { 'data-act': 'place', 'data-id': place.id, 'data-open': String(open), 'aria-expanded': String(open) },
      el('span', { class: 'twist', 'aria-hidden': true }, open ? '▾' : '▸'), place.names.map(([kind, name], n) => [el('span', { class: 'kind' }, `${n ? ', ' : ''}${kind} `), el('span', { class: 'name' }, name)])),
    place.mds.map(mdsTag)),
    el('td', { class: 'l' }, unwell), roomCells(place),
    rateCell(place.read_bytes_per_s), rateCell(place.write_bytes_per_s), el('td', {}), el('td', {}));
  return [row, open ? inside(place, depth + 1) : []];
}

function inside(node, depth) {
  return [
    node.places.map((place) => placeRows(place, depth)),
    node.cs.map((cs) => el('tr', { class: `cs d${depth} ${MOOD[cs.mood]}` },
      el('td', {}, el('button', { 'data-act': 'server', 'data-id': cs.cs, title: 'all that is known of it' }, el('span', { class: 'name' }, `CS#${cs.cs}`))),
      el('td', { class: 'l' }, cs.mood === 'plain' ? cs.state : el('b', { class: MOOD[cs.mood] }, cs.state)),
      roomCells(cs), rateCell(cs.read_bytes_per_s), rateCell(cs.write_bytes_per_s),
      cs.io_mean_us == null ? el('td', { class: 'muted' }, '-') : el('td', { title: `of its disk, in the last 20 s; the longest took ${ms(cs.io_max_us)}` }, ms(cs.io_mean_us)),
      el('td', {}, count(cs.replicas)))),
    node.more ? el('tr', { class: `d${depth}` }, el('td', { colspan: 8, class: 'muted' }, `and ${count(node.more)} more places: find them by name above`)) : [],
  ];
}
const heads = (...names) => el('thead', {}, el('tr', {}, names.map((name) => el('th', { class: name.startsWith('<') ? 'l' : null, scope: 'col' }, name.replace('<', '')))));

function servers(s) {
  const tree = state.servers;
  const rows = tree ? inside(tree, 0).flat(Infinity) : [];
  const none = el('tr', {}, el('td', { colspan: 8, class: 'muted' }, s.cs.all ? 'none is like that' : 'there is no chunk server'));
  // Metadata servers on hosts without a chunk server would not be seen otherwise; all of them stand together.
  const mds = s.mds.map((m) => el('tr', { class: MOOD[m.mood] },
    el('td', {}, el('span', { class: 'name' }, `MDS#${m.mds}`), m.master ? ' master' : ''),
    el('td', { class: 'l' }, m.mood === 'plain' ? m.state : el('b', { class: MOOD[m.mood] }, m.state)),
    el('td', { class: 'l', colspan: 3 }, m.addr), el('td', { class: 'muted', colspan: 3, title: m.master ? `${bytes(m.memory_bytes)} of memory` : null },
      `${count(m.commits)} commits`)));
  fill($('servers'), [
    heads('place', '<state', 'used', 'free', 'read', 'write', 'latency', 'replicas'),
    el('tbody', {}, rows.length ? rows : none),
    el('tbody', {}, el('tr', { class: 'place' }, el('td', { colspan: 8 }, el('span', { class: 'name' }, 'Metadata servers'))), mds),
  ]);
}

/* ---- Events, clients, checks ---- */

function events(s) {
  let last = day(s.unix_ms);
  const rows = (state.events?.events ?? []).flatMap((event) => {
    const today = day(event.time_ms);
    const row = el('li', { class: MOOD[event.severity] },
      el('time', { title: new Date(event.time_ms).toISOString() }, clock(event.time_ms)), el('span', { title: event.system }, event.message));
    const head = today !== last && el('li', { class: 'day' }, today);
    last = today;
    return [head, row];
  });
  fill($('events'), [
    rows.length ? rows : el('li', { class: 'muted' }, 'none'),
    state.events?.more && state.eventsLimit < 1000 && el('li', {}, el('button', { class: 'more', 'data-act': 'more-events' }, 'older')),
  ]);
}

function clients(s) {
  fill($('clients-count'), [`${plural(s.clients, 'client')}`]);
  const list = state.clients ?? { clients: [], more: 0 };
  fill($('clients'), [heads('client', '<host', '<mounted on', 'open files'), el('tbody', {},
    list.clients.map((c) => el('tr', {}, el('td', {}, String(c.client)), el('td', { class: 'l' }, c.host), el('td', { class: 'l' }, c.mount_point), el('td', {}, count(c.leases)))),
    list.more ? el('tr', {}, el('td', { colspan: 4, class: 'muted' }, `and ${count(list.more)} more that have fewer files open: pstorage stat`)) : [])]);
}

function checks(s) {
  const passed = s.findings.filter((f) => f.verdict === 'ok').length;
  fill($('checks-count'), [`${passed} of ${s.findings.length + s.more_findings} passed`]);
  fill($('checks'), s.findings.map((f) => el('li', {}, ofCheck(f))));
}

/* ---- One server ---- */

let shownServer = null;
async function showServer(id) {
  const box = $('detail');
  shownServer = id;
  const close = el('button', { class: 'close', 'data-act': 'close' }, 'close');
  box.replaceChildren(close, el('h2', {}, `CS#${id}`), el('p', { class: 'muted' }, 'asking the metadata server …'));
  if (!box.open) box.showModal();
  let story;
  try {
    story = await get(`api/explain?cs=${id}`);
  } catch {
    story = null;
  }
  if (shownServer !== id) return;
  if (!story) return box.replaceChildren(close, el('h2', {}, `CS#${id}`), el('p', {}, 'No metadata server answers this now. Try again in a moment.'));
  const list = (title, lines) => lines.length ? [el('h3', {}, title), el('ul', {}, lines.map((line) => el('li', {}, line)))] : [];
  const value = (name, v) => {
    if (name.endsWith('bytes_per_s')) return rate(v);
    if (name.endsWith('bytes')) return bytes(v);
    if (Array.isArray(v)) return v.join(', ');
    return v?.operations == null ? String(v) : v.operations ? `mean ${ms(v.mean_us)}, longest ${ms(v.max_us)}` : '-';
  };
  const fact = ([name, v]) => el('div', {}, el('dt', {}, name.replaceAll('_', ' ').replace(/ bytes$/, '').replace('bytes per s', 'rate')), el('dd', {}, value(name, v)));
  const states = Object.entries(story.states).filter(([name, n]) => n > 0 && name !== 'total').map(([name, n]) => `${count(n)} ${name}`);
  box.replaceChildren(close, el('h2', {}, `CS#${id} on ${story.server.host}`),
    ...list('What is wrong', story.wrong), ...list('What happens next', story.next), ...list('Why', story.why),
    el('h3', {}, 'Its chunks'), el('p', {}, states.join(', ') || 'none'),
    el('h3', {}, 'All figures'), el('dl', { class: 'all' }, Object.entries(story.server).map(fact)));
}

/* ---- The whole page ---- */

function headline(s) {
  const current = s?.current && !state.unreachable;
  const [word, mood] = current ? [s.status, MOOD[s.mood]] : ['not current', 'bad'];
  $('health').className = `pill ${mood}`;
  fill($('health'), [word]);
  fill($('cluster'), [s?.cluster ?? '…']);
  document.title = `${{ good: '✔', warn: '▲', bad: '✖' }[mood] ?? ''} ${s?.cluster ?? 'pstorage'}: ${word}`;
  const colour = { good: '%231a9157', warn: '%23d98a00', bad: '%23c62828' }[mood];
  const icon = `data:image/svg+xml,<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="${colour}"/></svg>`;
  if ($('icon').getAttribute('href') !== icon) $('icon').setAttribute('href', icon);
  document.body.classList.toggle('stale', !current);
  fill($('clock'), [s?.age_ms == null ? '' : current ? `as of ${clock(s.unix_ms - s.age_ms)}` : `last figures of ${clock(s.unix_ms - s.age_ms)}`]);
  fill($('foot'), [s ? `pstorage ${s.version} on ${s.host} · a look each ${duration(s.refresh_ms)} · times of this browser · nothing can be changed from here` : '']);
}

function draw() {
  const s = state.status;
  headline(s);
  alarm(s);
  $('figures').hidden = !s?.fs;
  if (!s?.fs) return;
  fill($('cards'), [space(s), machines(s), chunks(s), repair(s)]);
  drawPlots();
  servers(s);
  events(s);
  clients(s);
  checks(s);
}

function drawPlots() {
  const s = state.status;
  if (!s?.fs) return;
  // All are as wide as the first will be: its frame and padding are not drawn on.
  const box = $('plots').firstElementChild;
  const width = Math.max(200, (box ? box.clientWidth : 420) - 32);
  const nowMs = (s.current ? s.unix_ms : state.samples.unix_ms?.at(-1)) ?? s.unix_ms;
  fill($('plots'), PLOTS.map((one) => plot(one, width, nowMs)));
}

const ACTS = {
  'all-findings': () => { state.allFindings = true; draw(); },
  'more-events': () => { state.eventsLimit = Math.min(1000, state.eventsLimit * 3); ask(askEvents); },
  place: ({ id, open }) => {
    const [from, to] = open === 'true' ? [state.opened, state.closed] : [state.closed, state.opened];
    from.delete(id);
    to.add(id);
    ask(askServers);
  },
  server: ({ id }) => showServer(Number(id)),
  close: () => $('detail').close(),
};
document.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (button) ACTS[button.dataset.act](button.dataset);
  else if (event.target === $('detail')) $('detail').close();
});
$('plots').addEventListener('pointermove', (event) => {
  const picture = event.target.closest('svg');
  if (!picture) return;
  const { left, width } = picture.getBoundingClientRect();
  const { from, to } = picture.dataset;
  const inner = LEFT * (width / picture.viewBox.baseVal.width);
  state.cursorMs = Number(from) + ((event.clientX - left - inner) / (width - inner)) * (to - from);
  drawPlots();
});
$('plots').addEventListener('pointerleave', () => { state.cursorMs = null; drawPlots(); });
$('find').addEventListener('input', () => ask(askServers));
$('unwell').addEventListener('change', () => ask(askServers));
$('least').addEventListener('change', () => ask(askEvents));
$('clients-card').addEventListener('toggle', () => ask(askClients));
addEventListener('resize', drawPlots);
document.addEventListener('visibilitychange', goOn);
goOn();
