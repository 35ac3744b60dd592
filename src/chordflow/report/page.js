"use strict";
// The slider, the theme, and downloads. Everything else on the page is there without a script.
const motion = JSON.parse(document.getElementById("motion").textContent);
const slider = document.getElementById("clock");

// Linear between the saves of a flow; its ends beyond them.
function at(times, values, t) {
  let i = times.findIndex((time) => time >= t);
  if (i === 0) return values[0];
  if (i < 0) return values[values.length - 1];
  const weight = (t - times[i - 1]) / (times[i] - times[i - 1]);
  return (1 - weight) * values[i - 1] + weight * values[i];
}

// Costs fall over many powers of ten: linear in their logarithm where they have one.
function between(times, values, t) {
  const positive = values.every((value) => value > 0);
  return positive ? Math.exp(at(times, values.map(Math.log), t)) : at(times, values, t);
}

function shown(value) {
  if (value === 0) return "0";
  const [digits, power] = value.toExponential(1).split("e");
  if (Math.abs(power) < 3) return String(Number(value.toPrecision(2)));
  const raised = power.replace(/./g, (c) => ({ "-": "⁻", "+": "" })[c] ?? "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]);
  return `${digits}×10${raised}`;
}

function move() {
  const t = Number(slider.value) / 1000;
  const s = -Math.log1p(-t);
  const said = t < 1 ? `t = ${t.toFixed(3)}, s/N = ${s.toFixed(2)}` : "t = 1, s/N = ∞";
  slider.setAttribute("aria-valuetext", said);
  document.getElementById("now").textContent = said;
  for (const mark of document.querySelectorAll(".mark")) {
    const flow = motion[mark.dataset.flow];
    const [x, y] = flow[mark.dataset.path].map((values) => at(flow.t, values, t));
    mark.setAttribute("transform", `translate(${x.toFixed(2)} ${y.toFixed(2)})`);
  }
  for (const cursor of document.querySelectorAll(".cursor")) {
    const { clock, zero, unit, left, right } = cursor.dataset;
    const x = Number(zero) + Number(unit) * (clock === "t" ? t : s);
    cursor.setAttribute("transform", `translate(${Number.isFinite(x) ? x.toFixed(2) : 0} 0)`);
    cursor.style.visibility = x >= left && x <= right ? "visible" : "hidden";
  }
  for (const cell of document.querySelectorAll("[data-live]")) {
    const flow = motion[cell.dataset.flow];
    const values = flow[cell.dataset.live];
    const over = t > flow.t[flow.t.length - 1] + 5e-4;
    cell.textContent = values ? shown(between(flow.t, values, t)) : "–";
    cell.parentElement.classList.toggle("other", over);
  }
}

if (slider) {
  slider.addEventListener("input", move);
  const play = document.getElementById("play");
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  };
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    play.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 5;
      move();
      if (slider.value === slider.max) stop();
    }, 30);
  });
  move();
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
});

// A picture on its own: colours of paper, without the marks that the slider moves.
for (const link of document.querySelectorAll("a.download")) {
  link.addEventListener("click", () => {
    const picture = document.getElementById(link.dataset.svg).cloneNode(true);
    for (const mark of picture.querySelectorAll(".mark, .cursor")) mark.remove();
    const [, , width, height] = picture.getAttribute("viewBox").split(" ");
    picture.setAttribute("width", `${width}pt`);
    picture.setAttribute("height", `${height}pt`);
    picture.setAttribute("font-family", "DejaVu Sans, Helvetica, Arial, sans-serif");
    picture.removeAttribute("class");
    const text = new XMLSerializer().serializeToString(picture).replace(/var\(--[a-z]+, (#[0-9a-f]{6})\)/g, "$1");
    link.href = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  });
}
