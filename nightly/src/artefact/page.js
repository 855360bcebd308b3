// Zoom and pan: what stands in time carries it as data-a and data-b, in microseconds.
const svg = document.getElementById("timeline");
const left = +svg.dataset.left, width = +svg.dataset.width;
const view = { from: +svg.dataset.from, until: +svg.dataset.until };
const end = Math.max(...[...document.querySelectorAll("button")].map((button) => +button.dataset.until));
const items = [...svg.querySelectorAll("[data-a]")].map((element) => {
  const a = +element.dataset.a;
  return { element, a, b: +(element.dataset.b ?? a), tag: element.tagName, y: element.dataset.y };
});
const axis = document.getElementById("axis");
const x = (at) => left + ((at - view.from) / (view.until - view.from)) * width;
function place(item) {
  const { element, a, b, tag } = item;
  const away = b < view.from || a > view.until;
  element.style.display = away ? "none" : "";
  if (away) return;
  const from = x(a), until = x(b);
  if (tag === "rect") {
    element.setAttribute("x", from);
    element.setAttribute("width", Math.max(until - from, 1.5));
  } else if (tag === "line") {
    element.setAttribute("x1", from);
    element.setAttribute("x2", until);
  } else if (tag === "text") {
    const start = Math.max(from, left);
    element.setAttribute("x", start + 3);
    if (element.classList.contains("label") && until - start < element.textContent.length * 6 + 4) element.style.display = "none";
  } else {
    element.setAttribute("transform", `translate(${from} ${item.y})`);
  }
}
function rule() {
  const height = axis.dataset.height, step = 10 ** Math.floor(Math.log10((view.until - view.from) / 4));
  const wide = [1, 2, 5, 10].map((times) => times * step).find((size) => (view.until - view.from) / size <= 12);
  let marks = "";
  for (let at = Math.ceil(view.from / wide) * wide; at <= view.until; at += wide) {
    const digits = wide >= 1000 ? 3 : 6;
    marks += `<line class="grid" x1="${x(at)}" x2="${x(at)}" y1="36" y2="${height}"/><text class="time" x="${x(at)}" y="12">${(at / 1e6).toFixed(digits)} s</text>`;
  }
  axis.innerHTML = marks;
}
let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; rule(); items.forEach(place); });
}
function show(from, until) {
  const length = Math.min(Math.max(until - from, 200), end * 1.1);
  view.from = Math.max(Math.min(from, end * 1.05 - length), -end * 0.02);
  view.until = view.from + length;
  draw();
}
const at = (event) => {
  const box = svg.getBoundingClientRect();
  const pixel = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
  return view.from + ((pixel - left) / width) * (view.until - view.from);
};
svg.addEventListener("wheel", (event) => {
  event.preventDefault();
  const middle = at(event), factor = event.deltaY > 0 ? 1.25 : 0.8;
  show(middle - (middle - view.from) * factor, middle + (view.until - middle) * factor);
}, { passive: false });
let held = null;
svg.addEventListener("pointerdown", (event) => { held = at(event); svg.setPointerCapture(event.pointerId); });
svg.addEventListener("pointerup", () => { held = null; });
svg.addEventListener("pointermove", (event) => {
  if (held !== null) { const by = held - at(event); show(view.from + by, view.until + by); }
});
const hover = document.getElementById("hover");
svg.addEventListener("mouseover", (event) => {
  const title = event.target.closest("[data-a]")?.querySelector("title");
  if (title) hover.textContent = title.textContent;
});
for (const button of document.querySelectorAll("button")) {
  button.addEventListener("click", () => show(+button.dataset.from, +button.dataset.until));
}
for (const box of document.querySelectorAll("input[data-kind]")) {
  box.addEventListener("change", () => {
    for (const element of svg.getElementsByClassName(box.dataset.kind)) element.classList.toggle("hidden", !box.checked);
  });
}
// A window in the address, as in timeline.html#1200000-1300000, is shown first.
const asked = location.hash.match(/^#(\d+)-(\d+)$/);
if (asked) show(+asked[1], +asked[2]); else draw();
