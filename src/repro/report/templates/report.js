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
  const scales = new Set([...form.querySelectorAll("[name=scale]:checked")].map((box) => box.value));
  const hits = (text) => words.every((word) => text.includes(word));

  for (const study of studies) {
    const { scale, date } = study.element.dataset;
    study.isShown =
      scales.has(scale) &&
      (!since.value || date >= since.value) &&
      (!until.value || date <= until.value) &&
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
  if (details) details.open = true;
}

form.addEventListener("input", apply);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(apply));
window.addEventListener("hashchange", openTarget);
for (const button of document.querySelectorAll(".legend button")) {
  const curves = [...button.closest(".study").querySelectorAll("figure .line, figure .band")];
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
openTarget();
apply(); // a browser may have kept what was typed before a reload
