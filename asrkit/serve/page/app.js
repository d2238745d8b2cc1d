// The page of `asrkit serve`: speech or a file goes to the server, words come back. Sound stays in this page's memory.

import { srt, text, json } from "./formats.js";

const FILE_RATE = 16000; // Hz; the browser decodes files to this
const BLOCK_BYTES = 32768; // of a file, sent at a time
const MOST_BUFFERED = 1 << 20; // bytes of a file on their way to the server
const MOST_BEHIND = 30; // seconds of speech on their way to the server
// Labels are emitted within their word, so a word is heard from a little earlier to the next one, but not much longer.
const EARLIER = 0.15, LATER = 0.1, MUCH_LATER = 0.4; // seconds
const SURE = 0.9, LIKELY = 0.6; // confidences from which a word is called so

const element = (id) => document.getElementById(id);
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** Something that the user should read; its message is a sentence. */
class Problem extends Error {}

const PROBLEMS = { // by the code of the server's message
  token: "This server asks for a token: open this page with #token=… at the end of its address.",
  busy: "The server has no room for another client now. Please try again later.",
  too_long: "This server takes no longer recordings. What it heard until then is kept.",
  idle: "The server stopped because no sound reached it.",
  shutdown: "The server was stopped. What it heard until then is kept.",
};

// ---- Sound ----

/** What was recorded: samples in blocks, for playing words. */
class Recording {
  constructor(name, rate) {
    this.name = name;
    this.rate = rate;
    this.blocks = [];
    this.size = 0;
  }

  get duration() {
    return this.size / this.rate;
  }

  add(block) {
    this.blocks.push({ first: this.size, samples: block });
    this.size += block.length;
  }

  /** Samples from `start` to `end` (seconds) as floats. */
  cut(start, end) {
    const first = Math.max(0, Math.floor(start * this.rate));
    const last = Math.min(this.size, Math.ceil(end * this.rate));
    const out = new Float32Array(Math.max(0, last - first));
    for (const block of this.blocks) {
      const from = Math.max(first, block.first), to = Math.min(last, block.first + block.samples.length);
      for (let i = from; i < to; i++) out[i - first] = block.samples[i - block.first] / 32768;
    }
    return out;
  }
}

/** Decode a sound file to one channel of 16-bit samples at FILE_RATE. */
async function decode(file) {
  let audio;
  try {
    audio = await new OfflineAudioContext(1, 1, FILE_RATE).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Problem(`“${file.name}” holds no sound that this browser can read.`);
  }
  const channels = Array.from({ length: audio.numberOfChannels }, (_, i) => audio.getChannelData(i));
  const samples = new Int16Array(audio.length);
  for (let i = 0; i < samples.length; i++) {
    let sum = 0;
    for (const channel of channels) sum += channel[i];
    samples[i] = Math.max(-32768, Math.min(32767, Math.round((32768 * sum) / channels.length)));
  }
  return samples;
}

/** Open the microphone; `onBlock` gets its samples, `onGone` is called when it is taken away. */
async function openMicrophone(onBlock, onGone) {
  if (!navigator.mediaDevices) {
    throw new Problem("Browsers give the microphone only to pages at localhost or with https.");
  }
  let media;
  try {
    const raw = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    media = await navigator.mediaDevices.getUserMedia({ audio: raw });
  } catch (error) {
    if (error.name === "NotAllowedError") throw new Problem("The browser did not allow this page to use the microphone.");
    if (error.name === "NotFoundError") throw new Problem("No microphone was found.");
    throw new Problem(`The microphone cannot be used: ${error.message}.`);
  }
  const context = new AudioContext();
  await context.audioWorklet.addModule("capture.js");
  const capture = new AudioWorkletNode(context, "capture", { channelCount: 1, channelCountMode: "explicit" });
  const ended = new Promise((resolve) => {
    capture.port.onmessage = ({ data }) => (data ? onBlock(data) : resolve());
  });
  media.getAudioTracks()[0].onended = onGone;
  return {
    rate: context.sampleRate,
    start: () => {
      context.resume();
      context.createMediaStreamSource(media).connect(capture).connect(context.destination); // capture is silent
    },
    /** Give the last samples to `onBlock` and switch off. */
    close: async () => {
      capture.port.postMessage("end");
      await Promise.race([ended, sleep(1)]);
      media.getTracks().forEach((track) => track.stop());
      await context.close();
    },
  };
}

let player; // AudioContext; browsers allow one only after a click
let playing; // { source, button }

function play(recording, word, button) {
  player ??= new AudioContext();
  player.resume();
  playing?.source.stop();
  const words = transcript.segments.flat();
  const next = words[words.indexOf(word) + 1]?.start ?? Infinity;
  const end = word.end + Math.max(LATER, Math.min(MUCH_LATER, next - word.end));
  const samples = recording.cut(word.start - EARLIER, end);
  if (!samples.length) return;
  const buffer = player.createBuffer(1, samples.length, recording.rate);
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(player, { buffer });
  source.connect(player.destination);
  source.onended = () => button.classList.remove("playing");
  playing?.button.classList.remove("playing");
  button.classList.add("playing");
  playing = { source, button };
  source.start();
}

// ---- The server ----

/** One stream of the protocol; `onResult` gets the messages "partial" and "final". */
class Stream {
  constructor(recording, onResult) {
    this.onResult = onResult;
    this.ended = false; // the server takes no more
    this.problem = null;
    const address = new URL("stream", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    address.hash = "";
    this.socket = new WebSocket(address);
    this.ready = new Promise((resolve) => (this.onReady = resolve)); // of its limits, or null
    this.closed = new Promise((resolve) => (this.onClosed = resolve));
    const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
    const start = { type: "start", rate: recording.rate, token };
    this.socket.onopen = () => this.socket.send(JSON.stringify(start));
    this.socket.onmessage = ({ data }) => this.hear(JSON.parse(data));
    this.socket.onclose = () => this.gone();
  }

  hear(message) {
    if (message.type === "ready") {
      this.limits = message.limits;
      this.onReady(message.limits);
    } else if (message.type === "error") {
      this.ended = true;
      this.problem = PROBLEMS[message.code] ?? `The server says: ${message.message}.`;
    } else if (message.type === "closed") {
      this.complete = true;
    } else {
      this.onResult(message);
    }
  }

  gone() {
    this.ended = true;
    if (!this.complete && !this.problem) {
      this.problem = this.limits
        ? "The connection to the server was lost. What it heard until then is kept."
        : "The server does not answer.";
    }
    this.onReady(null);
    this.onClosed();
  }

  /** Send samples, or null when there are no more. */
  send(samples) {
    if (this.ended) return;
    this.socket.send(samples ?? '{"type": "stop"}');
    this.ended = samples === null;
  }
}

// ---- The transcript ----

let transcript = { name: "", duration: 0, segments: [] }; // segments: lists of words

function clockTime(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

function level(confidence) {
  return confidence >= SURE ? "sure" : confidence >= LIKELY ? "likely" : "unsure";
}

function wordButton(word, recording) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "word";
  button.textContent = word.text;
  button.tabIndex = -1;
  button.title = `${word.start.toFixed(2)} to ${word.end.toFixed(2)} s`;
  if (word.confidence !== null) {
    button.classList.add(level(word.confidence));
    button.title = `${Math.round(100 * word.confidence)} % sure, ${button.title}`;
    element("legend").hidden = false;
  }
  button.onclick = () => {
    focusWord(button);
    play(recording, word, button);
  };
  return button;
}

function showResult(message, recording) {
  const partial = element("partial");
  transcript.duration = message.duration;
  partial.textContent = message.type === "partial" ? message.text : "";
  if (message.type === "final" && message.words.length) {
    transcript.segments.push(message.words);
    const row = document.createElement("div");
    row.className = "segment";
    const time = document.createElement("span");
    time.className = "time";
    time.textContent = clockTime(message.words[0].start);
    const line = document.createElement("p");
    for (const word of message.words) line.append(wordButton(word, recording), " ");
    row.append(time, line);
    element("segments").append(row);
    element("footer").hidden = false;
    if (!document.querySelector('.word[tabindex="0"]')) line.firstChild.tabIndex = 0;
  }
  partial.hidden = !partial.textContent;
  element("hint").hidden = transcript.segments.length > 0 || !partial.hidden;
  const page = document.documentElement;
  if (page.scrollHeight - page.scrollTop - page.clientHeight < 200) page.scrollTop = page.scrollHeight;
}

function clearTranscript(name) {
  transcript = { name, duration: 0, segments: [] };
  element("segments").replaceChildren();
  element("partial").hidden = element("legend").hidden = element("footer").hidden = true;
  element("hint").hidden = false;
}

/** One word is in the tab order; the arrow keys go from word to word. */
function focusWord(button) {
  document.querySelector('.word[tabindex="0"]').tabIndex = -1;
  button.tabIndex = 0;
  button.focus();
}

element("segments").addEventListener("keydown", (event) => {
  const words = [...document.querySelectorAll(".word")];
  const here = words.indexOf(event.target);
  const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: words.length - 1 }[event.key];
  if (here < 0 || !words[to]) return;
  event.preventDefault();
  focusWord(words[to]);
});

function save(content, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "text/plain" }));
  link.download = transcript.name.replace(/\.\w{1,5}$/, "").replace(/[^\p{L}\p{N}._-]+/gu, "-") + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

element("save-txt").onclick = () => save(text(transcript), ".txt");
element("save-srt").onclick = () => save(srt(transcript), ".srt");
element("save-json").onclick = () => save(json(transcript), ".json");

// ---- One recording at a time ----

let stop = null; // ends the present one

function showState(name, status) {
  document.body.dataset.state = name; // "idle", "listening", "working"
  element("speak-text").textContent = name === "idle" ? "Speak" : "Stop";
  element("choose").disabled = name !== "idle";
  element("status").textContent = status; // read aloud by screen readers, unlike the clock
  element("clock").textContent = "";
}

function showProblem(line) {
  element("problem").textContent = line;
  element("problem").hidden = !line;
}

/** Run one recording from its first to its last message; whatever goes wrong is shown. */
async function run(job) {
  if (stop) {
    showProblem("One at a time: stop the present recording first, or wait for its end.");
    return;
  }
  stop = () => {};
  showProblem("");
  try {
    await job();
  } catch (error) {
    showProblem(error instanceof Problem ? error.message : `Something in this page went wrong: ${error.message}.`);
  }
  stop = null;
  element("progress").hidden = true;
  const words = transcript.segments.flat().length;
  showState("idle", words ? `${words} ${words === 1 ? "word" : "words"} in ${clockTime(transcript.duration)}` : "");
}

function open(recording) {
  clearTranscript(recording.name);
  return new Stream(recording, (message) => showResult(message, recording));
}

async function finish(stream) {
  await stream.closed;
  if (stream.problem) throw new Problem(stream.problem);
}

async function speak() {
  showState("working", "Opening the microphone");
  let stream, recording;
  const stopped = new Promise((resolve) => (stop = resolve));
  let gone = null;
  const microphone = await openMicrophone(
    (block) => {
      recording.add(block);
      stream.send(block);
      const peak = block.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0) / 32768;
      document.body.style.setProperty("--level", Math.sqrt(peak).toFixed(2));
      element("clock").textContent = clockTime(recording.duration);
      if (stream.ended) stop();
      if (stream.socket.bufferedAmount > 2 * MOST_BEHIND * recording.rate) {
        gone = "The connection is too slow for live sound.";
        stop();
      }
    },
    () => {
      gone = "The microphone went away.";
      stop();
    },
  );
  try {
    const now = new Date(Date.now() - 60000 * new Date().getTimezoneOffset()).toISOString();
    recording = new Recording(`speech ${now.slice(0, 16).replace("T", " ")}`, microphone.rate);
    stream = open(recording);
    if (await stream.ready) {
      showState("listening", "Listening");
      microphone.start();
      await stopped;
      showState("working", "Finishing");
    }
  } finally {
    await microphone.close();
  }
  stream.send(null);
  await finish(stream);
  if (gone) throw new Problem(gone);
}

async function hearFile(file) {
  showState("working", `Reading ${file.name}`);
  const samples = await decode(file);
  const recording = new Recording(file.name, FILE_RATE);
  recording.add(samples);
  const stream = open(recording);
  const limits = await stream.ready;
  const size = limits && Math.min(BLOCK_BYTES, limits.message_bytes) >> 1;
  let cancelled = false;
  stop = () => (cancelled = true);
  showState("working", file.name);
  element("progress").hidden = false;
  const watch = setInterval(() => {
    element("progress").value = transcript.duration / recording.duration;
    element("clock").textContent = `${clockTime(transcript.duration)} of ${clockTime(recording.duration)}`;
  }, 100);
  try {
    for (let i = 0; i < samples.length && !stream.ended && !cancelled; i += size) {
      stream.send(samples.subarray(i, i + size));
      while (stream.socket.bufferedAmount > MOST_BUFFERED && !stream.ended && !cancelled) await sleep(0.02);
    }
    stream.send(null);
    await finish(stream);
  } finally {
    clearInterval(watch);
  }
}

element("speak").onclick = () => (stop ? stop() : run(speak));
element("choose").onclick = () => element("file").click();
element("file").onchange = () => {
  const [file] = element("file").files;
  if (file) run(() => hearFile(file));
  element("file").value = "";
};

let depth = 0; // elements that a dragged file has entered and not left
addEventListener("dragenter", () => document.body.classList.toggle("dropping", ++depth > 0));
addEventListener("dragleave", () => document.body.classList.toggle("dropping", --depth > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file) run(() => hearFile(file));
});
