// SPDX-License-Identifier: Apache-2.0
// The page: chooses a model and a backend, shows pictures and answers, measures, and posts the times.

import {cropped, normalised} from "./preprocess.js";

const LARGEST = 4096; // side of a picture in pixels: larger ones are drawn smaller, which phones' canvases need
const TOP = 5;
const $ = id => document.getElementById(id);
const cores = navigator.hardwareConcurrency || 1;
let models = [], engine = null, ready = null, stream = null, busy = false, gpuName = "";

class Engine {
  constructor() {
    this.worker = new Worker("engine.js", {type: "module"});
    this.pending = [];
    this.worker.addEventListener("message", ({data}) => {
      if (data.progress !== undefined) { progress(data.progress); return; }
      const {resolve, reject} = this.pending.shift();
      data.error === undefined ? resolve(data.answer) : reject(new Error(data.error));
    });
    this.worker.addEventListener("error", event => {
      for (const {reject} of this.pending.splice(0)) reject(new Error(event.message || "the worker could not start"));
    });
  }

  ask(method, values = {}, transfer = []) {
    return new Promise((resolve, reject) => {
      this.pending.push({resolve, reject});
      this.worker.postMessage({method, ...values}, transfer);
    });
  }

  end() {
    this.worker.terminate();
    for (const {reject} of this.pending.splice(0)) reject(new Error("replaced by another model"));
  }
}

function say(text) { $("state").textContent = text; }

function progress(share) {
  $("progress").hidden = share === null;
  if (share !== null) $("progress").value = share;
}

function fail(error) {
  const text = String(error?.message ?? error);
  progress(null);
  say("");
  $("error").hidden = false;
  $("error").textContent = /memory|bad_alloc|allocat|out of bounds|RangeError/i.test(text)
    ? `This device has not enough memory for it. Close other tabs, or choose a smaller model. (${text})`
    : text;
}

function quiet() {
  $("error").hidden = true;
  $("error").textContent = "";
}

function enable(on) {
  for (const id of ["picture", "measure", "everything"]) $(id).disabled = !on;
  $("camera").disabled = !on || !navigator.mediaDevices?.getUserMedia;
  for (const id of ["model", "backend"]) $(id).disabled = busy;
}

// Every way to run a model that this browser has: WebAssembly on one and on all cores, WebGPU.
async function backends() {
  const found = [{backend: "wasm", threads: 1, title: "WebAssembly, 1 thread"}], hints = [];
  if (self.crossOriginIsolated && cores > 1)
    found.unshift({backend: "wasm", threads: Math.min(cores, 8), title: `WebAssembly, ${Math.min(cores, 8)} threads`});
  if (!self.isSecureContext)
    hints.push("This address is not a safe one (https), so the browser gives no camera, threads or WebGPU. Choosing a picture can still take a photograph.");
  else if (!self.crossOriginIsolated) hints.push("This browser gives WebAssembly no threads.");
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (adapter) {
    gpuName = [adapter.info?.vendor, adapter.info?.architecture, adapter.info?.description].filter(Boolean).join(" ");
    found.push({backend: "webgpu", threads: 1, title: `WebGPU${gpuName ? `, ${gpuName}` : ""}`});
  } else if (self.isSecureContext) hints.push("This browser has no WebGPU, or no graphics processor for it.");
  $("hints").replaceChildren(...hints.map(text => item("li", text)));
  return found;
}

function item(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text;
  return node;
}

const fetched = new Map();

async function bytesOf(index) {
  if (!fetched.has(index)) {
    const response = await fetch(`model/${index}.onnx`);
    if (!response.ok) throw new Error(`the model cannot be fetched: ${response.status}. Is the server still running?`);
    const parts = [];
    let done = 0;
    for (const reader = response.body.getReader(); ;) {
      const {value, done: ended} = await reader.read();
      if (ended) break;
      parts.push(value);
      done += value.length;
      progress(done / models[index].bytes);
    }
    fetched.clear(); // one at a time: a phone's memory is small
    fetched.set(index, new Uint8Array(await new Blob(parts).arrayBuffer()));
  }
  return fetched.get(index);
}

async function load() {
  busy = true;
  enable(false);
  quiet();
  const index = Number($("model").value), way = ways[Number($("backend").value)], model = models[index];
  ready = null;
  try {
    engine?.end();
    engine = new Engine();
    say(`Fetching ${model.name}, ${(model.bytes / 1e6).toFixed(1)} MB`);
    const bytes = await bytesOf(index);
    say("Loading it into the runtime ...");
    progress(null);
    const times = await engine.ask("load", {bytes, ...way, size: model.preprocessing.input_size});
    ready = {index, way, model, ...times};
    say(`${model.name} is ready: loaded in ${times.loadMs.toFixed(0)} ms, first answer in ${times.firstMs.toFixed(1)} ms`);
  } catch (error) {
    fail(error);
  } finally {
    busy = false;
    progress(null);
    enable(ready !== null);
    for (const id of ["model", "backend"]) $(id).disabled = false;
  }
}

// The whole upright picture on white, as ImageData.
function pixelsOf(source, width, height) {
  const scale = Math.min(1, LARGEST / Math.max(width, height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const context = canvas.getContext("2d", {willReadFrequently: true, colorSpace: "srgb"});
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

function show(image) {
  const canvas = $("shown"), {height, width, channels, data} = image;
  canvas.width = width;
  canvas.height = height;
  const rgba = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) rgba.data[4 * i + c] = data[channels * i + (channels === 3 ? c : 0)];
    rgba.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(rgba, 0, 0);
  canvas.hidden = false;
}

async function predict(rgba) {
  const {model} = ready, image = cropped(rgba, model.preprocessing);
  show(image);
  const values = normalised(image, model.preprocessing);
  const {logits, ms} = await engine.ask("predict", {values}, [values.buffer]);
  const most = Math.max(...logits), powers = logits.map(value => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  const best = powers.map((power, i) => [power / sum, i]).sort((a, b) => b[0] - a[0]).slice(0, TOP);
  $("answer").replaceChildren(...best.map(([share, i]) => {
    const line = document.createElement("li");
    line.append(item("span", model.labels[i] ?? String(i)), item("span", `${(100 * share).toFixed(1)}%`));
    line.style.setProperty("--share", share);
    line.dataset.probability = share;
    return line;
  }));
  $("speed").textContent = `${ms.toFixed(1)} ms` + (model.trained ? "" : ". This model has random weights: its answers mean nothing.");
}

async function choosePicture() {
  const [file] = $("picture").files;
  if (!file) return;
  stopCamera();
  quiet();
  $("answer").replaceChildren();
  try {
    const bitmap = await createImageBitmap(file, {imageOrientation: "from-image", colorSpaceConversion: "none"})
      .catch(() => { throw new Error(`${file.name} is no picture that this browser can read.`); });
    await predict(pixelsOf(bitmap, bitmap.width, bitmap.height));
    bitmap.close();
  } catch (error) {
    fail(error);
  }
  $("picture").value = ""; // so that the same picture can be chosen again
}

const CAMERA_ERRORS = {
  NotAllowedError: "The camera was not allowed. Allow it in the browser's settings for this page, or choose a picture.",
  NotFoundError: "There is no camera. Choose a picture.",
  NotReadableError: "The camera is in use by another program.",
};

async function toggleCamera() {
  if (stream) { stopCamera(); return; }
  quiet();
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}, audio: false});
  } catch (error) {
    fail(CAMERA_ERRORS[error.name] ?? error);
    return;
  }
  const video = document.createElement("video");
  Object.assign(video, {srcObject: stream, muted: true, playsInline: true});
  $("camera").textContent = "Stop the camera";
  try {
    await video.play();
    while (stream) {
      if (ready && !busy && video.videoWidth) await predict(pixelsOf(video, video.videoWidth, video.videoHeight));
      await new Promise(resolve => requestAnimationFrame(resolve));
    }
  } catch (error) {
    fail(error);
  }
  stopCamera();
}

function stopCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  $("camera").textContent = "Camera";
}

const round = value => Math.round(value * 1e4) / 1e4;

async function measure() {
  if (!ready) return;
  stopCamera();
  busy = true;
  enable(false);
  const {index, way, model, loadMs, firstMs} = ready;
  say(`Measuring ${model.name}, ${way.title} ...`);
  progress(0);
  try {
    const found = await engine.ask("measure");
    const row = {
      model: index, backend: way.backend, threads: way.threads, cores, calls: found.calls, gpu: way.backend === "webgpu" ? gpuName.slice(0, 100) : "",
      latency_ms: round(found.median), p5_ms: round(found.p5), p95_ms: round(found.p95), first_ms: round(firstMs), load_ms: round(loadMs),
    };
    const line = document.createElement("tr");
    const name = item("td", model.name);
    name.append(item("small", way.title));
    line.append(name, ...["latency_ms", "p5_ms", "p95_ms", "first_ms", "load_ms"].map(key => item("td", row[key].toFixed(row[key] < 100 ? 2 : 0))));
    $("rows").append(line);
    const response = await fetch("row", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(row)})
      .catch(() => { throw new Error("the row could not be sent: is the server still running?"); });
    if (!response.ok) throw new Error(`the server did not take the row: ${await response.text()}`);
    line.dataset.sent = "yes";
    say(`${found.median.toFixed(2)} ms, ${(1000 / found.median).toFixed(1)} images a second; the row was sent`);
  } catch (error) {
    fail(error);
  } finally {
    busy = false;
    progress(null);
    enable(true);
  }
}

async function everything() {
  for (let index = 0; index < models.length; index++)
    for (let way = 0; way < ways.length; way++) {
      $("model").value = index;
      $("backend").value = way;
      await load();
      if (ready) await measure();
    }
}

function options(select, titles) {
  select.replaceChildren(...titles.map((title, i) => Object.assign(item("option", title), {value: i})));
}

let ways = [];

async function start() {
  if (typeof WebAssembly !== "object" || typeof OffscreenCanvas !== "function")
    throw new Error("This browser is too old: it has no WebAssembly or no OffscreenCanvas.");
  const response = await fetch("models.json");
  if (!response.ok) throw new Error(`the list of models cannot be fetched: ${response.status}`);
  const listed = await response.json();
  models = listed.models;
  ways = await backends();
  options($("model"), models.map(model => `${model.name}${model.precision === "fp32" ? "" : `, ${model.precision}`} (${(model.bytes / 1e6).toFixed(1)} MB)`));
  options($("backend"), ways.map(way => way.title));
  $("device").textContent = `${cores} processor cores${self.crossOriginIsolated ? "" : ", one used"}`;
  $("runtime").textContent = `ONNX Runtime Web ${listed.runtime}`;
  $("model").addEventListener("change", load);
  $("backend").addEventListener("change", load);
  $("picture").addEventListener("change", choosePicture);
  $("camera").addEventListener("click", toggleCamera);
  $("measure").addEventListener("click", measure);
  $("everything").addEventListener("click", everything);
  await load();
}

start().catch(fail);
