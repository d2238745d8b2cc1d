// The page of one recording: who spoke when and where. Times are seconds, azimuths degrees. What is drawn is what is
// visible, so a meeting of hours is as quick as one of minutes.
"use strict";

const LEAST_SHOWN = 2; // seconds
const JUMP = 5; // seconds of an arrow key
const ZOOM = 1.6; // of a key, or a button
const BAR = 0.6; // of the height of a row
const AXIS = 22; // pixels below the rows
const TICKS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600]; // seconds
const TICK_WIDTH = 90; // pixels, at least
const DRAGGED = 4; // pixels: less is a click
const COLOURS = 8;

const element = (id) => document.getElementById(id);
const clamp = (value, least, most) => Math.max(least, Math.min(most, value));

const data = JSON.parse(element("data").textContent);
const speakers = data.speakers.map((speaker) => (
  { ...speaker, reach: reached(speaker.ends), track: azimuths(speaker.track) }
));
const located = speakers.some((speaker) => speaker.track);
const audio = element("audio"), turns = element("turns"), field = element("azimuths");
const view = { start: 0, end: data.duration };
let position = 0;
let drawing = false; // a drawing is to come

/** The latest end so far, which grows even where turns of one speaker overlap. */
function reached(ends) {
  let latest = 0;
  return ends.map((end) => (latest = Math.max(latest, end)));
}

/** Tenths of degrees as 16-bit numbers in base64; the least one is unknown. */
function azimuths(text) {
  if (!text) return null;
  const values = new Int16Array(bytes(text).buffer);
  return Float32Array.from(values, (value) => (value === -32768 ? NaN : value / 10));
}

function bytes(base64) {
  const text = atob(base64), out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}

function clock(seconds, decimals = 0) {
  const tenths = Math.floor(seconds * 10 ** decimals + 1e-6);
  const whole = Math.floor(tenths / 10 ** decimals);
  const two = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  const rest = decimals ? "." + String(tenths % 10 ** decimals).padStart(decimals, "0") : "";
  return (hours ? `${hours}:${two(minutes)}` : `${minutes}`) + ":" + two(whole % 60) + rest;
}

/** The number of values before `value` in an array that grows. */
function before(values, value) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// ---- Drawing ----

function show(start, end) {
  const span = clamp(end - start, Math.min(LEAST_SHOWN, data.duration), data.duration);
  view.start = clamp(start, 0, data.duration - span);
  view.end = view.start + span;
  const scroll = element("scroll");
  scroll.disabled = span >= data.duration;
  scroll.value = scroll.disabled ? 0 : view.start / (data.duration - span);
  draw();
}

function zoom(factor, centre = clamp(position, view.start, view.end)) {
  show(centre - (centre - view.start) / factor, centre + (view.end - centre) / factor);
}

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const style = getComputedStyle(document.documentElement);
    const colours = speakers.map((_, i) => style.getPropertyValue(`--speaker-${i % COLOURS}`));
    drawTurns(open(turns), colours, style);
    if (located) drawAzimuths(open(field), colours, style);
    move();
  });
}

/** Fit a canvas to the screen's pixels; return what draws on it, in CSS pixels. */
function open(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas, scale = window.devicePixelRatio;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height, x: (time) => (width * (time - view.start)) / (view.end - view.start) };
}

function drawTurns({ context, width, height, x }, colours, style) {
  const row = (height - AXIS) / Math.max(speakers.length, 1);
  grid(context, width, height, x, style);
  speakers.forEach(({ starts, ends, reach }, i) => {
    context.fillStyle = colours[i];
    let drawn = -1; // the pixel up to which this row is drawn
    for (let n = before(reach, view.start); n < starts.length && starts[n] < view.end; n++) {
      const left = Math.max(x(starts[n]), 0), right = Math.min(Math.max(x(ends[n]), left + 1), width);
      if (right - drawn < 0.5) continue;
      context.fillRect(left, row * (i + (1 - BAR) / 2), right - left, row * BAR);
      drawn = right;
    }
  });
}

/** Lines at round times, and the times below. */
function grid(context, width, height, x, style) {
  const tick = TICKS.find((each) => (width * each) / (view.end - view.start) >= TICK_WIDTH) ?? 7200;
  context.strokeStyle = style.getPropertyValue("--line");
  context.fillStyle = style.getPropertyValue("--quiet");
  context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  for (let n = Math.ceil(view.start / tick); n * tick <= view.end; n++) {
    const left = Math.round(x(n * tick)) + 0.5;
    context.beginPath();
    context.moveTo(left, 0);
    context.lineTo(left, height - AXIS + 4);
    context.stroke();
    const text = clock(n * tick, tick < 1 ? 1 : 0), half = context.measureText(text).width / 2;
    context.fillText(text, clamp(left - half, 0, width - 2 * half), height - 6);
  }
}

function drawAzimuths({ context, width, height, x }, colours, style) {
  const y = (degrees) => (height * (180 - degrees)) / 360;
  context.strokeStyle = style.getPropertyValue("--line");
  for (const degrees of [-180, -90, 0, 90, 180]) {
    context.beginPath();
    context.moveTo(0, clamp(Math.round(y(degrees)), 1, height - 1) - 0.5);
    context.lineTo(width, clamp(Math.round(y(degrees)), 1, height - 1) - 0.5);
    context.stroke();
  }
  const stride = Math.max(1, Math.floor((view.end - view.start) / data.step / width));
  speakers.forEach(({ starts, ends, reach, track }, i) => {
    if (!track) return;
    context.strokeStyle = colours[i];
    context.lineJoin = "round";
    context.globalAlpha = 0.35;
    context.lineWidth = 1;
    line(context, track, stride, view.start, view.end, x, y);
    context.globalAlpha = 1;
    context.lineWidth = 3; // where the speaker speaks
    for (let n = before(reach, view.start); n < starts.length && starts[n] < view.end; n++) {
      line(context, track, stride, Math.max(starts[n], view.start), Math.min(ends[n], view.end), x, y);
    }
  });
}

/** Draw every `stride`th value of a track, broken where it is unknown or goes through the rear. */
function line(context, track, stride, start, end, x, y) {
  const first = Math.max(0, Math.floor(start / data.step / stride) * stride);
  const last = Math.min(track.length - 1, Math.ceil(end / data.step));
  context.beginPath();
  let previous = NaN;
  for (let n = first; n <= last; n += stride) {
    if (Math.abs(track[n] - previous) <= 180) context.lineTo(x(n * data.step), y(track[n]));
    else if (track[n] === track[n]) context.moveTo(x(n * data.step), y(track[n]));
    previous = track[n];
  }
  context.stroke();
}

// ---- Position ----

const seen = { names: "" };

/** Put the line at the position and tell who speaks there. */
function move() {
  const place = (turns.clientWidth * (position - view.start)) / (view.end - view.start);
  for (const head of document.querySelectorAll(".head")) {
    head.hidden = place < 0 || place > turns.clientWidth;
    head.style.transform = `translateX(${place}px)`;
  }
  element("clock").textContent = `${clock(position, 1)} / ${clock(data.duration)}`;
  turns.setAttribute("aria-valuenow", position.toFixed(1));
  turns.setAttribute("aria-valuetext", clock(position));
  const speaking = speakers.map(({ starts, reach }) => {
    const n = before(reach, position + 1e-9);
    return n < starts.length && starts[n] <= position ? n : -1;
  });
  const names = speaking.join() + speakers.map((speaker) => speaker.name).join("\n");
  if (names === seen.names) return;
  seen.names = names;
  [...element("legend").children].forEach((item, i) => item.classList.toggle("speaking", speaking[i] >= 0));
  element("now").replaceChildren(...speakers.flatMap(({ name, texts }, i) => {
    if (speaking[i] < 0) return [];
    const strong = document.createElement("strong"), line = document.createElement("div");
    strong.textContent = name;
    line.append(strong, texts ? `: ${texts[speaking[i]]}` : "");
    return [line];
  }));
}

function seek(time) {
  position = clamp(time, 0, data.duration);
  if (!audio.hidden) audio.currentTime = position;
  follow();
  move();
}

const visible = () => view.start <= position && position <= view.end;

/** Show the part in which the position is. */
function follow() {
  const span = view.end - view.start;
  if (!visible()) show(position - 0.1 * span, position + 0.9 * span);
}

function tick() {
  const watched = visible(); // who has moved on to look elsewhere is left there
  position = Math.min(audio.currentTime, data.duration);
  if (watched) follow();
  move();
  if (!audio.paused) requestAnimationFrame(tick);
}

// ---- Controls ----

let dragged = null; // where the pointer went down, and what was shown

function grab(canvas) {
  const time = (x) => view.start + ((view.end - view.start) * x) / canvas.clientWidth;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    dragged = { x: event.offsetX, start: view.start, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!dragged) return;
    const pixels = event.offsetX - dragged.x, span = view.end - view.start;
    dragged.moved ||= Math.abs(pixels) >= DRAGGED && span < data.duration;
    if (!dragged.moved) return;
    const start = dragged.start - (span * pixels) / canvas.clientWidth;
    show(start, start + span);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (dragged && !dragged.moved) seek(time(event.offsetX));
    dragged = null;
  });
  canvas.addEventListener("pointercancel", () => (dragged = null));
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) {
      zoom(Math.exp(-event.deltaY / 200), time(event.offsetX));
    } else {
      const pixels = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
      if (!pixels) return; // the page scrolls
      const step = ((view.end - view.start) * pixels) / canvas.clientWidth;
      show(view.start + step, view.end + step);
    }
    event.preventDefault();
  }, { passive: false });
}

const KEYS = {
  " ": () => (audio.paused ? audio.play() : audio.pause()),
  ArrowLeft: () => seek(position - JUMP),
  ArrowRight: () => seek(position + JUMP),
  Home: () => seek(0),
  End: () => seek(data.duration),
  "+": () => zoom(ZOOM),
  "-": () => zoom(1 / ZOOM),
  0: () => show(0, data.duration),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, audio") || (event.key === " " && event.target.matches("button"))) return;
  const act = KEYS[event.key === "=" ? "+" : event.key];
  if (!act || (event.key === " " && audio.hidden)) return;
  event.preventDefault();
  act();
});

// ---- Speakers and files ----

/** Their names, with swatches, at the left of their rows. */
function legend() {
  const spoken = speakers.map(({ starts, ends }) => ends.reduce((sum, end, n) => sum + end - starts[n], 0));
  const total = spoken.reduce((sum, seconds) => sum + seconds, 0);
  speakers.forEach((speaker, i) => {
    const item = document.createElement("li"), swatch = document.createElement("span");
    const name = document.createElement("input"), share = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = `var(--speaker-${i % COLOURS})`;
    name.value = name.title = speaker.name;
    name.setAttribute("aria-label", `Name of speaker ${i + 1}`);
    name.addEventListener("input", () => {
      speaker.name = name.title = name.value.trim() || data.speakers[i].name;
      move();
    });
    name.addEventListener("keydown", (event) => event.key === "Enter" && name.blur());
    name.addEventListener("change", () => (name.value = speaker.name));
    share.className = "share";
    share.textContent = `${clock(spoken[i])} · ${Math.round((100 * spoken[i]) / total)} %`;
    item.append(swatch, name, share);
    element("legend").append(item);
  });
}

/** All turns in order of time, with the names that the speakers have now. */
function segments() {
  return speakers.flatMap(({ name, starts, ends, texts }) =>
    starts.map((start, n) => ({ speaker: name, start, end: ends[n], words: texts ? texts[n] : "" }))
  ).sort((a, b) => a.start - b.start);
}

function rttm() {
  const field = (name) => name.trim().split(/\s+/).join("_") || "<NA>";
  return segments().map(({ speaker, start, end }) =>
    `SPEAKER ${field(data.recording)} 1 ${start.toFixed(3)} ${(end - start).toFixed(3)} ` +
    `<NA> <NA> ${field(speaker)} <NA> <NA>\n`
  ).join("");
}

function seglst() {
  return JSON.stringify(segments().map(({ speaker, start, end, words }) => (
    { session_id: data.recording, speaker, start_time: start, end_time: end, words }
  )), null, 1) + "\n";
}

function save(text, kind, suffix) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = data.recording.replace(/[^\p{L}\p{N}._-]+/gu, "-").replace(/^[-.]+/, "") + suffix;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- Start ----

function sound() {
  const embedded = element("sound").textContent;
  if (!embedded && !data.audio) return;
  audio.hidden = false;
  audio.addEventListener("error", () => {
    const file = data.audio ? `: ${decodeURIComponent(data.audio)}` : ".";
    element("problem").textContent = `The sound of this recording cannot be played${file}`;
    element("problem").hidden = false;
  });
  audio.addEventListener("play", tick);
  audio.addEventListener("seeking", tick);
  audio.src = embedded ? URL.createObjectURL(new Blob([bytes(embedded)], { type: data.kind })) : data.audio;
}

const count = speakers.reduce((sum, { starts }) => sum + starts.length, 0);
const some = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
element("summary").textContent = `${some(speakers.length, "speaker")}, ${some(count, "turn")}, ${clock(data.duration)}`;
element("degrees").hidden = field.parentElement.hidden = !located;
turns.setAttribute("aria-valuemax", data.duration.toFixed(1));
turns.style.height = `calc(${speakers.length} * var(--row) + ${AXIS}px)`;
legend();
sound();
[turns, field].forEach(grab);
element("in").addEventListener("click", () => zoom(ZOOM));
element("out").addEventListener("click", () => zoom(1 / ZOOM));
element("whole").addEventListener("click", () => show(0, data.duration));
element("scroll").addEventListener("input", ({ target }) => {
  const span = view.end - view.start, start = target.value * (data.duration - span);
  show(start, start + span);
});
element("save-rttm").addEventListener("click", () => save(rttm(), "text/plain", ".rttm"));
element("save-seglst").addEventListener("click", () => save(seglst(), "application/json", ".json"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new ResizeObserver(draw).observe(element("timeline"));
show(0, data.duration);
