"use strict";

/* Panels: show the one that the pickers name. */
for (const group of document.querySelectorAll(".panels")) {
  const pickers = [...group.querySelectorAll(":scope > .pickers > .picker")];
  const panels = [...group.querySelectorAll(":scope > .panel")];
  const show = () => {
    const chosen = pickers.map((picker) => picker.querySelector("select, input:checked").value);
    const varying = pickers.map((picker) => Number(picker.dataset.axis));
    let found = false;
    for (const panel of panels) {
      const at = panel.dataset.at.split(" ");
      const on = varying.every((axis, i) => at[axis] === chosen[i]);
      panel.classList.toggle("on", on);
      found ||= on;
    }
    group.querySelector(":scope > .nothing").hidden = found;
  };
  group.addEventListener("change", show);
  show();
}

/* Tables: sort by a click on a heading, filter by typing. */
const key = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.v ?? cell.textContent;
};
for (const button of document.querySelectorAll(".data thead button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const body = head.closest("table").tBodies[0];
    const numeric = head.classList.contains("n");
    const first = numeric && head.cellIndex > 0 ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const parse = (text) => (numeric ? Number.parseFloat(text.replace("inf", "Infinity")) : text);
    const keyed = [...body.rows].map((row) => [parse(key(row, head.cellIndex)), row]);
    const missing = (value) => value === "–" || Number.isNaN(value);
    keyed.sort(([a], [b]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      return sign * (numeric ? (a > b) - (a < b) : a.localeCompare(b, undefined, { numeric: true }));
    });
    body.append(...keyed.map(([, row]) => row));
  });
}
for (const input of document.querySelectorAll(".filter input")) {
  const rows = [...input.closest(".filter").nextElementSibling.querySelectorAll("tbody tr")];
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    let left = 0;
    for (const row of rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      left += !row.hidden;
    }
    input.nextElementSibling.textContent = wanted ? `${left} of ${rows.length} rows` : "";
  });
}

/* A link to something folded away or filtered out opens the way to it. */
const reveal = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target.hidden = false;
  target.scrollIntoView({ block: target.tagName === "TR" ? "center" : "start" });
};
addEventListener("hashchange", reveal);
document.addEventListener("click", (event) => {
  if (event.target.closest("a[href^='#']")?.hash === location.hash) reveal();
});
if (location.hash) reveal();

/* Titles as tooltips that come at once. */
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true");
document.body.append(tip);
let tipped = null;
const release = () => {
  if (tipped) tipped.title = tip.textContent;
  tipped = null;
  tip.hidden = true;
};
document.addEventListener("pointerover", (event) => {
  release();
  const owner = event.target.closest("main [title]");
  if (!owner || !owner.title) return;
  tipped = owner;
  tip.textContent = owner.title;
  owner.removeAttribute("title");
  tip.hidden = false;
  const box = owner.getBoundingClientRect();
  const above = box.top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
});
document.addEventListener("scroll", release, true);

/* Contents: mark the part that is being read. */
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const parts = [...links.keys()].map((id) => document.getElementById(id));
const mark = () => {
  const passed = parts.filter((part) => part.getBoundingClientRect().top < innerHeight / 3);
  const bottom = innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
  const current = bottom && scrollY > 0 ? parts.at(-1) : passed.at(-1) ?? parts[0];
  for (const [id, a] of links) {
    if (id === current?.id) a.setAttribute("aria-current", "true");
    else a.removeAttribute("aria-current");
  }
};
addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true });
mark();

/* Figures: what a figure leaves open takes the colours of the page, in light, dark and print. */
const theme = (own) => {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), linecolor: colour("--faint"), zerolinecolor: colour("--line"), automargin: true };
  const base = own?.layout ?? {};
  return {
    data: own?.data ?? {},
    layout: {
      ...base,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      colorway: ["#0f8b8d", "#e08214", "#7b6cc4", "#c2477f", "#5b8c2a", "#b58900", "#7f7f7f"],
      font: { ...base.font, color: colour("--ink"), family: colour("--sans"), size: 13 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left" },
      legend: { ...base.legend, orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--faint"), activecolor: colour("--accent") },
      margin: { t: 56, r: 24, b: 56, l: 64 },
      xaxis: { ...base.xaxis, ...axis },
      yaxis: { ...base.yaxis, ...axis },
    },
  };
};
const paint = () => {
  for (const plot of document.querySelectorAll(".plot")) {
    const { data, layout = {}, frames } = JSON.parse(plot.nextElementSibling.textContent);
    const themed = { ...layout, template: theme(layout.template), width: undefined, autosize: true };
    const config = { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "" };
    Plotly.react(plot, { data, layout: themed, frames, config });
  }
};
if (globalThis.Plotly) {
  paint();
  for (const media of ["print", "(prefers-color-scheme: dark)"]) matchMedia(media).addEventListener("change", paint);
}
