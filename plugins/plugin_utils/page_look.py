# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the fleet's page looks and sorts: its style and its script, both fixed texts.

No word of a host ever gets into them, so their hashes can stand in the page's Content-Security-Policy, and a browser runs
nothing else. That rules out style attributes: lengths of bars are attributes of SVG rectangles. Neither text may have two
braces in a row, or a brace and a percent sign: the page passes through Ansible's templates on its way to the disk.
"""

from __future__ import annotations

#: Colours have at least 3:1 against their background (text 4.5:1), in light and dark; a category's colour never stands alone,
#: its name and figure are below the bar. On paper the light colours are used.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --text: #1b2430; --soft: #55606e; --line: #dfe3e8; --track: #eceff3;
  --focus: #1f5fd0; --had: #12813f; --bad: #b42318; --bad-card: #fdf3f2; --bad-line: #efc6c2;
  --images: #2f6fdb; --containers: #0a8f8f; --volumes: #8355cf; --build_cache: #b8640b; --logs: #cf3f66;
  --container_metadata: #5d8422; --engine_metadata: #87694f; --tmp: #977600; --leftovers: #c033a8;
  --unattributed: #4b5563; --other: #8a95a3; --network: #87694f;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #0f1419; --card: #171d25; --text: #e4e9ef; --soft: #9aa6b4; --line: #2a323d; --track: #232b35;
    --focus: #7fb0ff; --had: #45c07a; --bad: #ff8b80; --bad-card: #2a1917; --bad-line: #5c2d28;
    --images: #6ea1f7; --containers: #38b9b3; --volumes: #b08df0; --build_cache: #e39a4a; --logs: #f2799a;
    --container_metadata: #9dc45c; --engine_metadata: #c0a085; --tmp: #d3b13a; --leftovers: #e579d3;
    --unattributed: #b6c0cc; --other: #748091; --network: #c0a085;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text); overflow-wrap: anywhere;
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1, h2, h3, h4, p, ul, ol, dl, dd, table { margin: 0; padding: 0; }
ul, ol { list-style: none; }
h1 { font-size: 1.5rem; line-height: 1.2; letter-spacing: -.01em; font-weight: 650; }
h2 { font-size: 1.05rem; font-weight: 650; }
h3 { font-size: 1rem; font-weight: 600; line-height: 1.3; }
h4 { font-size: .8125rem; font-weight: 600; color: var(--soft); margin-bottom: .35rem; }
small, .soft { font-size: .8125rem; color: var(--soft); }
a { color: inherit; }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; border-radius: 4px; }
section { margin-top: 1.75rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin-top: 1.25rem; }
.figures div, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.figures div { padding: .7rem .9rem .75rem; }
.figures dt { font-size: .8125rem; color: var(--soft); }
.figures dd { font-size: 1.6rem; line-height: 1.25; font-weight: 650; letter-spacing: -.015em; }
.figures dd + dd { font-size: .8125rem; font-weight: 400; letter-spacing: 0; color: var(--soft); }
.figures .had dd:first-of-type { color: var(--had); }
.figures .bad dd:first-of-type { color: var(--bad); }
.whole { padding: .9rem; margin-top: .75rem; }
.bar { display: block; width: 100%; height: 16px; border-radius: 4px; background: var(--track); overflow: hidden; forced-color-adjust: none; }
.whole .bar { height: 22px; }
.bar rect { stroke: var(--card); stroke-width: 1px; vector-effect: non-scaling-stroke; }
.bar .track { fill: var(--track); stroke: none; }
i { width: .625rem; height: .625rem; border-radius: 2px; display: inline-block; margin-right: .4em; forced-color-adjust: none; }
.images { fill: var(--images); background: var(--images); }
.containers { fill: var(--containers); background: var(--containers); }
.volumes { fill: var(--volumes); background: var(--volumes); }
.build_cache { fill: var(--build_cache); background: var(--build_cache); }
.logs { fill: var(--logs); background: var(--logs); }
.container_metadata { fill: var(--container_metadata); background: var(--container_metadata); }
.engine_metadata { fill: var(--engine_metadata); background: var(--engine_metadata); }
.tmp { fill: var(--tmp); background: var(--tmp); }
.leftovers { fill: var(--leftovers); background: var(--leftovers); }
.unattributed { fill: var(--unattributed); background: var(--unattributed); }
.network { fill: var(--network); background: var(--network); }
.other { fill: var(--other); background: var(--other); }
.free { fill: var(--track); background: var(--track); box-shadow: inset 0 0 0 1px var(--soft); }
.bar .line { fill: var(--had); stroke: none; }
.gain { background: var(--had); }
.legend { display: flex; flex-wrap: wrap; gap: .3rem; margin: .75rem -.35rem -.25rem; }
.legend li > span { display: block; padding: .25rem .5rem; }
.legend li { font-size: .8125rem; }
button {
  font: inherit; color: inherit; background: none; border: 0; border-radius: 6px; margin: 0; padding: .2rem .35rem;
  text-align: left; cursor: pointer; white-space: nowrap;
}
button:disabled { color: inherit; cursor: default; }
button:hover:enabled { background: var(--track); }
button[aria-pressed=true] { background: var(--track); font-weight: 600; }
button[aria-pressed=true]::after { content: " \\25BE"; color: var(--soft); }
button[aria-pressed=true].up::after { content: " \\25B4"; }
.legend button { font-size: .8125rem; padding: .25rem .5rem; }
.legend b { display: block; font-size: .9375rem; font-weight: 600; padding-left: 1.025rem; }
.top { display: flex; flex-wrap: wrap; align-items: baseline; gap: .35rem 1rem; justify-content: space-between; margin-bottom: .6rem; }
.tools { display: none; gap: .5rem; align-items: center; }
.js .tools { display: flex; }
.tools button { border: 1px solid var(--line); background: var(--card); padding: .25rem .6rem; font-size: .875rem; }
input {
  font: inherit; font-size: .875rem; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .25rem .6rem; width: 11rem; min-width: 0;
}
.bad h2 { color: var(--bad); }
.bad .card { background: var(--bad-card); border-color: var(--bad-line); }
.reasons > li { display: grid; grid-template-columns: minmax(7rem, 13rem) minmax(0, 1fr); gap: .1rem 1rem; padding: .55rem .9rem; }
.reasons > li + li { border-top: 1px solid var(--line); }
.bad .reasons > li + li { border-color: var(--bad-line); }
.reasons p { max-width: 80ch; }
.row { display: grid; gap: .3rem 1.25rem; grid-template-columns: minmax(8rem, 13rem) minmax(0, 1fr) 9.5rem 7rem 1rem; align-items: start; }
.heads { padding: 0 .9rem .25rem; font-size: .8125rem; color: var(--soft); align-items: baseline; }
.heads button { margin-left: -.35rem; }
.heads .figure button { margin: 0 -.35rem 0 0; }
.figure { text-align: right; }
.figure b { display: block; font-weight: 600; line-height: 1.3; }
.figure.had b { color: var(--had); }
.figure .full { color: var(--bad); font-weight: 600; }
.figure small { white-space: nowrap; }
.hosts > li { overflow: clip; }
.hosts > li + li { border-top: 1px solid var(--line); }
.hosts > li:first-child { border-radius: 8px 8px 0 0; }
.hosts > li:last-child { border-radius: 0 0 8px 8px; }
summary { cursor: pointer; padding: .7rem .9rem; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary:hover { background: color-mix(in srgb, var(--track) 45%, transparent); }
summary:focus-visible { outline-offset: -2px; }
summary small { display: block; line-height: 1.35; }
.row::after { content: "\\203A"; color: var(--soft); font-size: 1.25rem; line-height: 1; transform-origin: 35% 55%; }
.heads.row::after { content: ""; }
[open] > .row::after { transform: rotate(90deg); }
.parts { margin-top: .3rem; }
.parts span { display: inline-block; margin-right: .9em; }
.parts i { width: .5rem; height: .5rem; }
.why { color: var(--bad); }
.more { padding: .25rem .9rem 1.1rem; display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.1rem 2rem; }
.more > .wide { grid-column: 1 / -1; }
.notes li { padding-left: 1rem; text-indent: -1rem; max-width: 90ch; }
.notes li::before { content: "\\26A0\\FE0E "; color: var(--bad); display: inline-block; width: 1rem; text-indent: 0; }
table { width: 100%; border-collapse: collapse; font-size: .875rem; }
th, td { text-align: right; font-weight: 400; padding: .22rem 0 .22rem .75rem; vertical-align: top; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 6.75rem; }
thead th { font-size: .8125rem; color: var(--soft); vertical-align: bottom; }
tbody tr { border-top: 1px solid var(--line); }
.sizes > li {
  display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 1rem; padding: .22rem 0; border-top: 1px solid var(--line); font-size: .875rem;
}
.sizes small { grid-column: 1 / -1; }
.wide > .sizes { columns: 2; column-gap: 2rem; }
.wide > .sizes > li { break-inside: avoid; }
.sizes .soft { white-space: nowrap; }
footer { margin-top: 1.5rem; }
footer p { max-width: 90ch; font-size: .8125rem; color: var(--soft); margin-top: .35rem; }
.unseen { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (max-width: 46rem) {
  main { padding: 1rem .75rem 2rem; }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; }
  .figures div { padding: .55rem .7rem .6rem; }
  .figures dd { font-size: 1.3rem; }
  .legend { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .15rem; }
  .legend button { width: 100%; white-space: normal; }
  .tools { width: 100%; }
  input { flex: 1; width: auto; }
  .reasons > li { grid-template-columns: minmax(0, 1fr); }
  .row { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr) 1rem; grid-template-areas: "name name mark" "disk disk disk" "used had had"; }
  .row > .name { grid-area: name; } .row > .disk { grid-area: disk; } .row > .had { grid-area: had; }
  .row > .used { grid-area: used; text-align: left; }
  .row::after { grid-area: mark; }
  .heads.row { display: flex; flex-wrap: wrap; gap: 0 .75rem; }
  .heads > .disk { display: none; }
  .heads button { margin: 0 0 0 -.35rem; }
  .more { grid-template-columns: minmax(0, 1fr); }
  .wide > .sizes { columns: 1; }
  table, thead th { font-size: .75rem; }
  th, td { padding-left: .3rem; }
  th:first-child { min-width: 5.9rem; }
  thead th { white-space: normal; }
}
@media print {
  body { background: #fff; font-size: 9.5pt; }
  main { max-width: none; padding: 0; }
  .js .tools, .row::after { display: none; }
  summary, .sizes > li, .reasons > li, tr, .figures, .whole { break-inside: avoid; }
  .bar, i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  button[aria-pressed=true] { background: none; }
}
"""

#: Sorting, finding a host, opening all. Without it everything can still be read, sorted by what could be had.
SCRIPT = """
(function () {
  'use strict';
  var list = document.getElementById('hosts'), said = document.getElementById('said');
  if (!list) { return; }
  document.documentElement.classList.add('js');
  var order = new Intl.Collator(undefined, {numeric: true});
  var rows = Array.from(list.children).map(function (row) {
    return {row: row, name: row.querySelector('bdi').textContent, values: row.dataset.v.split(' ').map(Number)};
  });
  var buttons = Array.from(document.querySelectorAll('button[data-sort]'));
  function sort(button) {
    var by = button.dataset.sort, byName = by === 'host';
    // The same button again turns the order round; names begin with a, figures with the largest.
    var up = button.getAttribute('aria-pressed') === 'true' ? !button.classList.contains('up') : byName;
    buttons.forEach(function (other) {
      var same = other.dataset.sort === by;
      other.setAttribute('aria-pressed', String(same));
      other.classList.toggle('up', same && up);
    });
    rows.sort(function (a, b) {
      var found = byName ? order.compare(a.name, b.name) : a.values[by] - b.values[by];
      return (up ? found : -found) || order.compare(a.name, b.name);
    });
    list.append.apply(list, rows.map(function (entry) { return entry.row; }));
    said.textContent = 'Sorted by ' + button.dataset.says + (byName ? (up ? ', a to z' : ', z to a') : (up ? ', smallest first' : ', largest first'));
  }
  buttons.forEach(function (button) {
    button.disabled = false;
    button.addEventListener('click', function () { sort(button); });
  });
  var find = document.getElementById('find');
  find.addEventListener('input', function () {
    var wanted = find.value.trim().toLowerCase(), shown = 0;
    rows.forEach(function (entry) {
      entry.row.hidden = entry.name.toLowerCase().indexOf(wanted) < 0;
      shown += entry.row.hidden ? 0 : 1;
    });
    said.textContent = shown + (shown === 1 ? ' host' : ' hosts');
  });
  var all = document.getElementById('all');
  all.addEventListener('click', function () {
    var open = all.getAttribute('aria-expanded') !== 'true';
    all.setAttribute('aria-expanded', String(open));
    all.textContent = open ? 'Close all' : 'Open all';
    rows.forEach(function (entry) {
      if (!entry.row.hidden) { entry.row.firstElementChild.open = open; }
    });
  });
}());
"""
