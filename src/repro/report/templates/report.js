"use strict";
const form = document.getElementById("filters");
const since = document.getElementById("since");
const until = document.getElementById("until");
const query = document.getElementById("query");

const lower = (element) => element.textContent.toLowerCase();
const studies = [...document.querySelectorAll(".study")].map((element) => ({
  element,
  paper: element.closest(".paper"),
  runs: [...element.querySelectorAll(".runs tbody tr")],
  text: null, // read on the first search: thousands of runs are a lot of text
  isShown: true,
}));
const rows = [...document.querySelectorAll(".overview tbody tr")];

function textOf(study) {
  const heading = study.paper.querySelectorAll(":scope > h2, :scope > p");
  study.text ??= [...heading, study.element].map(lower).join("\n");
  return study.text;
}

function apply() {
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  const boxes = [...form.querySelectorAll("[name=scale]")]; // none where there is but one scale
  const scales = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  const hits = (text) => words.every((word) => text.includes(word));

  for (const study of studies) {
    const { scale, date } = study.element.dataset;
    study.isShown =
      (!boxes.length || scales.has(scale)) &&
      (!since?.value || date >= since.value) &&
      (!until?.value || date <= until.value) &&
      (!words.length || hits(textOf(study)));
    study.element.hidden = !study.isShown;
    if (study.isShown) filterRuns(study.runs, words.length ? hits : null);
  }
  const shown = studies.filter((study) => study.isShown);
  const papers = new Set(shown.map((study) => study.paper));
  for (const paper of document.querySelectorAll(".paper")) paper.hidden = !papers.has(paper);
  for (const older of document.querySelectorAll(".older")) {
    older.hidden = !older.querySelector(".study:not([hidden])");
  }
  filterOverview(new Set(shown.map((study) => study.element.id)));
  document.getElementById("nothing").hidden = shown.length > 0;
  document.getElementById("shown").textContent =
    shown.length < studies.length ? `${shown.length} of ${studies.length} studies` : "";
}

// Where words name runs, only these runs are listed; where they name something else, all are.
function filterRuns(runs, hits) {
  const found = hits ? runs.filter((run) => hits(lower(run))) : [];
  const kept = new Set(found);
  for (const run of runs) run.hidden = found.length > 0 && !kept.has(run);
}

// The first row of a paper and scale that passes speaks for them: rows stand best first.
function filterOverview(shown) {
  const seen = new Set();
  for (const row of rows) {
    const { key, study } = row.dataset;
    row.hidden = !shown.has(study) || seen.has(key);
    if (!row.hidden) seen.add(key);
  }
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const details = target?.closest("details");
  if (!details) return;
  details.open = true;
  // Below the filters, and once more when what has come into view has its height.
  const bar = getComputedStyle(form).position === "sticky" ? form.offsetHeight : 0;
  target.style.scrollMarginTop = `${bar + 16}px`;
  const show = () => target.scrollIntoView({ behavior: "instant" });
  show();
  requestAnimationFrame(() => requestAnimationFrame(show));
}

form.addEventListener("input", apply);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(apply));
window.addEventListener("hashchange", openTarget);
for (const button of document.querySelectorAll(".legend button")) {
  const curves = [...button.closest(".study").querySelectorAll(".chart .line, .chart .band, .chart .lost")];
  const isMine = (curve) => curve.classList.contains(button.dataset.line);
  button.addEventListener("click", () => {
    const isOn = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(isOn));
    for (const curve of curves.filter(isMine)) curve.toggleAttribute("hidden", !isOn);
  });
  const highlight = (isOn) => () => {
    for (const curve of curves) {
      curve.classList.toggle("dim", isOn && !isMine(curve));
      curve.classList.toggle("lit", isOn && isMine(curve));
    }
  };
  button.addEventListener("pointerenter", highlight(true));
  button.addEventListener("pointerleave", highlight(false));
}
// -- The values of curves under the pointer, read off the paths: 0.1 of a point is fine enough.
const [LEFT, RIGHT, TOP, BOTTOM] = document.querySelector("main").dataset.frame.split(" ").map(Number);
const SVG = "http://www.w3.org/2000/svg";
const MOST = 12; // arms named beside the pointer
const tip = document.getElementById("tip");

function pointsOf(line) {
  line.points ??= [...line.getAttribute("d").matchAll(/(-?[\d.]+) (-?[\d.]+)/g)].map((found) => ({
    x: Number(found[1]),
    y: Number(found[2]),
  }));
  return line.points;
}

const nearest = (points, x) =>
  points.reduce((best, point) => (Math.abs(point.x - x) < Math.abs(best.x - x) ? point : best));

// What stands at a place of a chart: its step, or its value.
function valueAt(share, ends, isLog) {
  const [first, last] = ends.split(" ").map(isLog ? (end) => Math.log10(end) : Number);
  const value = first + share * (last - first);
  return isLog ? 10 ** value : value;
}

const element = (name, text = "") => Object.assign(document.createElement(name), { textContent: text });

function rowOf(line, point, chart) {
  const { y, log } = chart.dataset;
  const share = (BOTTOM - point.y) / (BOTTOM - TOP);
  const value = Number(valueAt(share, y, log !== undefined).toPrecision(3));
  const row = element("tr");
  const key = element("td");
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", "0 0 16 6");
  const sample = document.createElementNS(SVG, "path");
  sample.setAttribute("d", "M1 3H15");
  sample.setAttribute("class", line.getAttribute("class"));
  picture.append(sample);
  key.append(picture);
  const outside = share < 0 || share > 1;
  row.append(key, element("td", line.textContent), element("td", outside ? "outside" : String(value)));
  return row;
}

function showValues(chart, event) {
  const lines = [...chart.querySelectorAll("path.line:not([hidden])")];
  if (!lines.length) return;
  const box = chart.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
  const found = lines.map((line) => ({ line, point: nearest(pointsOf(line), x) }));
  const closest = nearest(found.map(({ point }) => point), x);
  chart.guide ??= chart.appendChild(document.createElementNS(SVG, "line"));
  chart.guide.setAttribute("class", "guide");
  chart.guide.removeAttribute("hidden");
  for (const [name, at] of Object.entries({ x1: closest.x, x2: closest.x, y1: TOP, y2: BOTTOM })) {
    chart.guide.setAttribute(name, at);
  }
  found.sort((one, other) => one.point.y - other.point.y);
  const step = Math.round(valueAt((closest.x - LEFT) / (RIGHT - LEFT), chart.dataset.x, false));
  const table = element("table");
  table.append(...found.slice(0, MOST).map(({ line, point }) => rowOf(line, point, chart)));
  tip.replaceChildren(element("div", `step ${step}`), table);
  tip.hidden = false;
  const left = Math.min(event.pageX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${event.pageY + 14}px`;
}

for (const chart of document.querySelectorAll(".chart")) {
  for (const kind of ["pointermove", "pointerdown"]) {
    chart.addEventListener(kind, (event) => showValues(chart, event));
  }
  chart.addEventListener("pointerleave", () => {
    tip.hidden = true;
    chart.guide?.setAttribute("hidden", "");
  });
}

// -- Studies or runs side by side: what each shows on this page, row by row.
const tray = document.getElementById("tray");
const comparison = document.getElementById("comparison");
const textOfCell = (cell) => (cell?.textContent ?? "").trim().replace(/\s+/g, " ");

// Made here, because a page may list thousands of runs.
for (const row of document.querySelectorAll(".runs tbody tr")) {
  const pick = Object.assign(element("input"), { type: "checkbox", className: "pick" });
  pick.setAttribute("aria-label", "compare");
  pick.dataset.name = `${row.closest("table").dataset.paper} ${textOfCell(row.cells[0])}`;
  row.cells[0].prepend(pick, " ");
  if (!textOfCell(row.cells[1])) row.cells[1].textContent = "finished"; // said once for all runs
}
const picks = [...document.querySelectorAll(".pick")];

function factsOfTable(table) {
  const heads = [...table.querySelectorAll("thead th")].map(textOfCell);
  return [...table.querySelectorAll("tbody tr")].flatMap((row) => {
    const cells = [...row.cells].map(textOfCell);
    return cells.slice(1).map((text, index) => [`${cells[0]}, ${heads[index + 1]}`, text]);
  });
}

function factsOf(pick) {
  const run = pick.closest(".runs tr");
  if (run) {
    const heads = [...run.closest("table").querySelectorAll("thead th")].map(textOfCell);
    return new Map([...run.cells].map(textOfCell).map((text, index) => [heads[index], text]).slice(1));
  }
  const study = pick.closest(".study");
  const claims = [...study.querySelectorAll("tr[data-claim]")].map((row) => {
    const effects = [...row.querySelectorAll(".effect b")].map(textOfCell);
    return [row.dataset.claim, [textOfCell(row.querySelector(".verdict")), ...effects].join("\n")];
  });
  const arms = [...study.querySelectorAll(".arms")].flatMap(factsOfTable);
  return new Map([...claims, ...arms]);
}

function compare() {
  const chosen = picks.filter((pick) => pick.checked);
  const facts = chosen.map(factsOf);
  const head = element("tr");
  head.append(element("th"), ...chosen.map((pick) => element("th", pick.dataset.name)));
  const rows = [...new Set(facts.flatMap((each) => [...each.keys()]))].map((key) => {
    const values = facts.map((each) => each.get(key) ?? "–");
    const row = element("tr");
    row.classList.toggle("same", new Set(values).size === 1);
    row.append(element("th", key), ...values.map((value) => element("td", value)));
    return row;
  });
  comparison.querySelector("table").replaceChildren(head, ...rows);
  comparison.showModal();
}

function countPicks() {
  const count = picks.filter((pick) => pick.checked).length;
  tray.hidden = count === 0;
  document.getElementById("chosen").textContent = `${count} chosen`;
  document.getElementById("compare").disabled = count < 2;
}

for (const pick of picks) pick.addEventListener("change", countPicks);
document.getElementById("compare").addEventListener("click", compare);
document.getElementById("close").addEventListener("click", () => comparison.close());
document.getElementById("clear").addEventListener("click", () => {
  for (const pick of picks) pick.checked = false;
  countPicks();
});
openTarget();
countPicks();
apply(); // a browser may have kept what was typed before a reload
