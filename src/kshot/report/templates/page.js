"use strict";
// Unpacks rows and pictures, draws what comes into view, and pages, filters and searches the listings.
const PAGE_ROWS = 10;

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), one => one.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

function make(kind, name, text = "") {
  const element = document.createElement(kind);
  element.className = name;
  element.textContent = text;
  return element;
}

function entryOf([lead, text, chips, details]) {
  const entry = make(details.length ? "details" : "div", "entry");
  const head = details.length ? entry.appendChild(make("summary", "")) : entry;
  if (lead) head.append(make("span", "lead", lead), " ");
  const facts = make("span", "chips");
  for (const [words, tone] of chips) facts.append(make("span", "chip " + tone, words), " ");
  head.append(make("span", "text", text), " ", facts);
  if (details.length) {
    const list = entry.appendChild(make("dl", ""));
    for (const [label, words, tone] of details) list.append(make("dt", tone, label), make("dd", "", words));
  }
  return entry;
}

function searched([lead, text, chips, details]) {
  return [lead, text, ...chips.map(one => one[0]), ...details.map(one => one[1])].join("\n").toLowerCase();
}

function startListing(root, {noun, entries}) {
  const part = name => root.querySelector(name);
  const selects = [...root.querySelectorAll("select")], search = part("input");
  const texts = new Array(entries.length);
  let found = entries, page = 0;

  function show() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE_ROWS));
    const start = page * PAGE_ROWS;
    part(".entries").replaceChildren(...found.slice(start, start + PAGE_ROWS).map(entryOf));
    const total = Number(root.dataset.total);
    const here = entries.length < total
      ? `${entries.length.toLocaleString("en")} on this page of ${total.toLocaleString("en")} in ${root.dataset.file}`
      : total.toLocaleString("en");
    part(".count").textContent = `${found.length.toLocaleString("en")} of ${here} ${noun}${total === 1 ? "" : "s"}`;
    part(".pager").hidden = pages < 2;
    part(".place").textContent = `${(page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`;
    part(".back").disabled = page === 0;
    part(".next").disabled = page === pages - 1;
  }

  function filter() {
    const tags = selects.map(one => one.value).filter(Boolean), words = search.value.toLowerCase().trim();
    found = entries.filter((entry, place) =>
      tags.every(tag => entry[4].includes(tag)) &&
      (!words || (texts[place] ??= searched(entry)).includes(words)));
    page = 0;
    show();
  }

  function turn(step) {
    page += step;
    show();
    root.scrollIntoView({block: "start"});
  }

  part(".filters").hidden = false;
  part(".filters").addEventListener("input", filter);
  part(".filters").addEventListener("submit", event => event.preventDefault());
  part(".back").addEventListener("click", () => turn(-1));
  part(".next").addEventListener("click", () => turn(1));
  filter();
}

function draw(place, {data, layout}) {
  place.replaceChildren();
  Plotly.newPlot(place, data, layout, {displayModeBar: false, responsive: true});
}

async function startPictures(figures) {
  const places = [...document.querySelectorAll(".plot")].filter(place => figures[place.id]);
  if (!places.length) return;
  const script = document.createElement("script");
  script.textContent = await unpack("packed-plotly");
  document.head.append(script);
  const waiting = new Set(places);
  const drawOne = place => waiting.delete(place) && draw(place, figures[place.id]);
  const watch = new IntersectionObserver(
    seen => seen.filter(one => one.isIntersecting).forEach(one => drawOne(one.target)), {rootMargin: "500px"});
  places.forEach(place => watch.observe(place));
  addEventListener("beforeprint", () => places.forEach(drawOne));
}

function startTokens() {
  const note = document.getElementById("token-note");
  if (!note) return;
  note.hidden = false;
  note.textContent = "\u00a0";
  const tell = event => {
    if (event.target.title) note.textContent = `“${event.target.textContent.trim() || "␣"}” ${event.target.title}`;
  };
  for (const kind of ["pointerover", "click"]) document.querySelector(".tokens").addEventListener(kind, tell);
}

async function start() {
  if (!("DecompressionStream" in window)) return; // the text and the first rows stand without it
  const page = JSON.parse(await unpack("packed-data"));
  startTokens();
  for (const [id, listing] of Object.entries(page.listings)) startListing(document.getElementById(id), listing);
  await startPictures(page.figures);
  document.documentElement.dataset.ready = "true";
}
start();
