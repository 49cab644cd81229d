"""The look of a page, and the few lines of code in it. Nothing is loaded from elsewhere."""

from __future__ import annotations

COLOURS = {"C": "#1f4e79", "-": "#cfe0f1", "p": "#e8a33d", "~": "#8a6fb0", " ": "#ffffff"}
"""Letter of a timeline -> colour. They differ in brightness too, for whoever sees few colours."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 20px 16px 60px; color: #1c2733;
  background: #fbfcfd; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 34px 0 6px; }
p { margin: 4px 0 10px; max-width: 76ch; }
.quiet { color: #5b6b7b; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 10px;
  margin: 16px 0; }
.card { background: #fff; border: 1px solid #dde4ea; border-radius: 8px; padding: 10px 12px; }
.card b { display: block; font-size: 1.3rem; line-height: 1.3; }
.card b.long { font-size: 1.02rem; line-height: 1.65; }
.card span { color: #5b6b7b; font-size: .84rem; }
.note { background: #fff7e6; border-left: 4px solid #e8a33d; padding: 6px 12px; margin: 6px 0;
  overflow-wrap: anywhere; }
.key { display: flex; flex-wrap: wrap; gap: 6px 16px; font-size: .84rem; margin: 8px 0; }
.key i { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 6px;
  vertical-align: -2px; border: 1px solid #b8c4cf; }
.filter { display: flex; flex-wrap: wrap; gap: 8px; margin: 10px 0; position: sticky; top: 0;
  background: #fbfcfd; padding: 8px 0; z-index: 1; align-items: center; }
.filter input, .filter select { font: inherit; padding: 6px 10px; border: 1px solid #b8c4cf;
  border-radius: 6px; background: #fff; min-width: 0; }
.filter input { flex: 1 1 220px; }
.rows.many { max-height: 75vh; overflow-y: auto; border-bottom: 1px solid #dde4ea; }
.row { display: grid; grid-template-columns: minmax(0, 330px) 82px minmax(0, 1fr); gap: 10px;
  align-items: center; padding: 2px 0; }
.name { font: 12.5px/1.35 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
.kind { font-size: .8rem; color: #5b6b7b; }
.strip { height: 15px; border-radius: 3px; border: 1px solid #b8c4cf; display: block; }
.axis { display: flex; justify-content: space-between; font-size: .76rem; color: #5b6b7b; }
.strip, .plot { cursor: crosshair; }
details > summary { list-style: none; cursor: pointer; }
details > summary::-webkit-details-marker { display: none; }
details > summary .name::before { content: "+ "; color: #5b6b7b; }
details[open] > summary .name::before { content: "- "; }
details > .row { background: #f1f5f8; }
details > .row .name { padding-left: 16px; }
.wide { overflow-x: auto; border: 1px solid #dde4ea; border-radius: 8px; background: #fff; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th, td { padding: 5px 10px; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e6ebf0; }
th { font-weight: 600; white-space: nowrap; background: #f1f5f8; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.why { min-width: 240px; overflow-wrap: anywhere; }
tr.total td { font-weight: 600; border-top: 2px solid #b8c4cf; }
.plot { display: block; width: 100%; height: 110px; background: #fff; border: 1px solid #dde4ea;
  border-radius: 6px; }
.drawing { max-height: 560px; overflow: auto; padding: 4px; }
.drawing svg { display: block; width: 100%; min-width: 760px; height: auto; }
.films { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px; }
.films figure { margin: 0; background: #fff; border: 1px solid #dde4ea; border-radius: 8px;
  padding: 8px; }
.films img, .films video { display: block; width: 100%; max-height: 300px; object-fit: contain;
  image-rendering: pixelated; }
.films figcaption { font-size: .84rem; padding-top: 6px; overflow-wrap: anywhere; }
.speed { display: grid; grid-template-columns: minmax(0, 180px) minmax(0, 1fr) 230px; gap: 12px;
  align-items: center; padding: 3px 0; }
.bar { background: #e6ebf0; border-radius: 3px; }
.bar i { display: block; height: 15px; border-radius: 3px; background: #1f4e79; }
.hidden { display: none; }
@media (max-width: 640px) {
  .row { grid-template-columns: minmax(0, 1fr) auto; gap: 2px 8px; padding: 5px 0; }
  .row .strip { grid-column: 1 / -1; }
  .speed { grid-template-columns: minmax(0, 1fr) auto; }
  .speed .bar { grid-column: 1 / -1; grid-row: 2; }
  .axis.steps { margin-left: 0; }
  h1 { font-size: 1.25rem; }
  table.sites, .sites tbody, .sites tr, .sites td { display: block; }
  .sites tr:first-child { display: none; }
  .sites tr { padding: 8px 0; border-bottom: 1px solid #b8c4cf; }
  .sites td, .sites td.n { border: 0; padding: 1px 10px; text-align: left; white-space: normal;
    overflow-wrap: anywhere; }
  .sites td:empty { display: none; }
  .sites td[data-label]::before { content: attr(data-label) ": "; color: #5b6b7b; }
}
@media (min-width: 641px) { .axis.steps { margin-left: 432px; } }
""".strip()

SCRIPT = """
'use strict';
const word = document.getElementById('word'), kind = document.getElementById('kind');
const rows = [...document.querySelectorAll('[data-find]')];
const groups = [...document.querySelectorAll('details.group')];
function sift() {
  const text = word.value.trim().toLowerCase(), wanted = kind.value;
  let shown = 0;
  for (const row of rows) {
    const fits = (!text || row.dataset.find.includes(text)) &&
      (!wanted || row.dataset.kind === wanted || row.dataset.reuse === wanted);
    row.classList.toggle('hidden', !fits);
    if (fits && row.dataset.count) shown += +row.dataset.count;
  }
  for (const group of groups) {
    const left = group.querySelectorAll(':scope > .row:not(.hidden)').length;
    group.classList.toggle('hidden', !left);
    group.open = left > 0 && text !== '';
  }
  document.getElementById('count').textContent = shown + ' sites';
}
if (word) {
  word.addEventListener('input', sift);
  kind.addEventListener('change', sift);
  sift();
}
const told = document.getElementById('told');
const steps = told ? JSON.parse(told.dataset.steps) : [];
const meanings = told ? JSON.parse(told.dataset.meanings) : {};
for (const event of ['mousemove', 'click']) document.addEventListener(event, e => {
  const strip = e.target.closest && e.target.closest('.strip');
  if (!strip || !told) return;
  const box = strip.getBoundingClientRect(), letters = strip.dataset.letters;
  const at = Math.min(letters.length - 1,
    Math.max(0, Math.floor((e.clientX - box.left) / box.width * letters.length)));
  told.textContent = 'step ' + steps[at] + ': ' + (meanings[letters[at]] || 'did not run');
});
""".strip()
