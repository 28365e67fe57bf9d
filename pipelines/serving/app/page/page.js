// Connects the parts of the page: the visitor's choices, the request to the server, and its answer.

import { readAddress, writeAddress } from "./address.js";
import { Picture } from "./picture.js";
import { drawAffinities, drawLegend, drawTabs, percent } from "./result.js";
import { Words } from "./words.js";

const $ = (id) => document.getElementById(id);

const model = await (await fetch("/api/model")).json();
const picture = new Picture($("canvas"));
const words = new Words($("words"), $("chips"), $("word"), (how) => {
  remember();
  if (how === "removed" && answer && words.words.length) runSoon();
});

let chosen = null; // {file} or {example: number}
let answer = null;
let view = "words";
let threshold = null; // null: the protocol's
let pinned = null; // the legend's entry that was clicked
let asking = null; // the request under way
let timer = 0;

// ---- what is chosen -------------------------------------------------------------------------------------------------

async function choose(next, source, name) {
  clearTimeout(timer);
  asking?.abort();
  chosen = next;
  answer = pinned = null;
  $("chosen").textContent = next.file ? name : "";
  for (const [number, button] of [...$("examples").children].entries()) {
    button.setAttribute("aria-pressed", String(number === next.example));
  }
  remember();
  hideMessage();
  let shown = true;
  try {
    picture.show(await createImageBitmap(source));
  } catch {
    shown = false;
    picture.image = null;
  }
  if (chosen !== next) return; // the visitor has chosen another one meanwhile
  $("canvas").hidden = !shown;
  $("empty").hidden = shown;
  draw();
  words.commit();
  if (words.words.length) await run();
  else if (!shown) showMessage(`${name} cannot be read as a picture: choose a JPEG, PNG, WebP, GIF or BMP file.`);
  else $("word").focus();
}

async function chooseFile(file) {
  if (!file) return;
  if (file.size > model.max_upload_megabytes * 1e6) {
    showMessage(`${file.name} has more than ${model.max_upload_megabytes} MB: shrink it, or choose another picture.`);
    return;
  }
  await choose({ file }, file, file.name);
}

async function chooseExample(number) {
  const response = await fetch(`/api/examples/${number}`);
  if (response.ok) await choose({ example: number }, await response.blob(), model.examples[number]);
}

// ---- the question ---------------------------------------------------------------------------------------------------

async function run() {
  clearTimeout(timer);
  words.commit();
  if (!chosen) {
    showMessage("Choose an image first: a picture of your own, or an example.");
    $("file").focus();
    return;
  }
  asking?.abort();
  const request = (asking = new AbortController());
  const form = new FormData();
  if (chosen.file) form.set("image", chosen.file);
  else form.set("example", chosen.example);
  form.set("words", words.words.join(","));
  form.set("background", $("background").checked ? "1" : "0");
  if (threshold !== null) form.set("threshold", threshold);
  busy(true);
  if (matchMedia("(max-width: 56rem)").matches) $("result").scrollIntoView({ block: "start" });
  try {
    const response = await fetch("/api/segment", { method: "POST", body: form, signal: request.signal });
    const given = await response.json();
    if (!response.ok) throw new Error(given.error);
    await picture.read(given);
    if (asking !== request) return;
    answer = given;
    hideMessage();
    if (!picture.layers.has(view) && view !== "image") view = "words";
    pinned = null;
    colourWords();
    drawAll();
    const found = answer.names.map((name, label) => [name, answer.shares[label]]).filter(([, share]) => share > 0);
    found.sort((first, second) => second[1] - first[1]);
    $("status").textContent = `Done in ${answer.seconds} s. ` +
      found.slice(0, 4).map(([name, share]) => `${name} ${percent(share)}`).join(", ") +
      (found.length > 4 ? ` and ${found.length - 4} more.` : ".");
  } catch (error) {
    if (error.name === "AbortError" || asking !== request) return;
    showMessage(error instanceof TypeError ? "The server does not answer. Is it still running?" : sentence(error.message));
  } finally {
    if (asking === request) {
      asking = null;
      busy(false);
    }
  }
}

function runSoon() {
  clearTimeout(timer);
  if (answer) timer = setTimeout(run, 300);
}

function busy(yes) {
  $("wait").hidden = !yes;
  $("run").setAttribute("aria-busy", String(yes));
  if (yes) $("status").textContent = "";
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?)]$/.test(text) ? "" : ".");
}

function showMessage(text) {
  $("message").textContent = text;
  $("message").hidden = false;
  $("message").scrollIntoView({ block: "nearest" });
}

function hideMessage() {
  $("message").hidden = true;
  $("message").textContent = "";
}

// ---- what is shown --------------------------------------------------------------------------------------------------

function draw(lit = pinned) {
  picture.draw(view, Number($("opacity").value), lit);
  for (const button of $("legend").querySelectorAll("button")) {
    button.classList.toggle("lit", Number(button.dataset.index) === lit);
    button.setAttribute("aria-pressed", String(Number(button.dataset.index) === pinned));
  }
}

function drawAll() {
  drawTabs(model.stages.length, view, show);
  drawLegend(entries(), { look: (index) => draw(index ?? pinned), pin });
  drawAffinities(answer);
  draw();
}

function show(name) {
  view = name;
  pinned = null;
  remember();
  drawAll();
}

// Names, colours and shares of what the view shows.
function entries() {
  if (!answer || view === "image") return [];
  if (view === "words") return answer.names.map((name, label) => [name, answer.colours[label], answer.shares[label]]);
  const { indexes, colours } = picture.layers.get(view);
  const counts = new Array(colours.length).fill(0);
  for (const index of indexes) counts[index]++;
  return colours.map((colour, group) => [`Group ${group + 1}`, colour, counts[group] / indexes.length]);
}

function pin(index) {
  pinned = pinned === index ? null : index;
  draw();
}

function colourWords() {
  words.colour(new Map(answer.names.map((name, label) => [name, answer.colours[label]])));
}

function showThreshold() {
  const on = $("background").checked;
  $("threshold-box").hidden = !on;
  const used = threshold ?? model.threshold;
  $("threshold").value = used ?? 0.5;
  $("threshold-value").textContent = used === null ? "none" : threshold === null ? `${used} (the model’s own)` : String(used);
  $("threshold-reset").hidden = threshold === null;
}

// ---- what is kept in the address ------------------------------------------------------------------------------------

function remember() {
  const background = $("background").checked;
  const example = chosen?.example ?? null;
  writeAddress({ words: words.words, background, threshold, view, opacity: $("opacity").value, example });
  $("share").textContent = chosen?.file
    ? "The address of this page keeps words and settings, so it can be shared; your own image is not in it. Images go to this server only, and are not kept there."
    : "The address of this page keeps words, settings and the example, so it can be shared. Images go to this server only, and are not kept there.";
}

async function restore() {
  const given = readAddress();
  words.set(given.words ?? model.words);
  $("background").checked = given.background ?? model.background;
  $("opacity").value = given.opacity ?? 65;
  threshold = given.threshold;
  view = given.view === "image" || /^stage-\d+$/.test(given.view) && Number(given.view.slice(6)) <= model.stages.length ? given.view : "words";
  showThreshold();
  drawAll();
  if (given.example !== null && given.example < model.examples.length) await chooseExample(given.example);
  else if (chosen) runSoon();
  remember();
}

// ---- start ----------------------------------------------------------------------------------------------------------

$("checkpoint").textContent = model.checkpoint;
$("license").hidden = !model.license;
$("license").textContent = model.license ? `Weights: ${model.license}` : "";
$("examples-box").hidden = !model.examples.length;
$("examples").replaceChildren(...model.examples.map((name, number) => {
  const button = document.createElement("button");
  const image = document.createElement("img");
  button.type = "button";
  button.title = image.alt = name;
  button.setAttribute("aria-pressed", "false");
  image.src = `/api/examples/${number}`;
  image.loading = "lazy";
  button.append(image);
  button.addEventListener("click", () => chooseExample(number));
  return button;
}));

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("file").addEventListener("change", () => chooseFile($("file").files[0]));
$("file").addEventListener("click", () => ($("file").value = "")); // the same file may be chosen again
$("background").addEventListener("change", () => {
  showThreshold();
  remember();
  runSoon();
});
$("threshold").addEventListener("input", () => {
  threshold = Number($("threshold").value);
  showThreshold();
  remember();
  runSoon();
});
$("threshold-reset").addEventListener("click", () => {
  threshold = null;
  showThreshold();
  $("threshold").focus();
  remember();
  runSoon();
});
$("opacity").addEventListener("input", () => {
  remember();
  draw();
});
$("tabs").addEventListener("keydown", (event) => {
  const tabs = [...$("tabs").children];
  const at = tabs.findIndex((tab) => tab.getAttribute("aria-selected") === "true");
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  tabs[(next + tabs.length) % tabs.length].click();
  $("tabs").querySelector("[aria-selected=true]").focus();
});
$("canvas").addEventListener("pointermove", (event) => {
  if (event.pointerType === "mouse" && pinned === null) draw(picture.indexAt(event, view));
});
$("canvas").addEventListener("pointerleave", () => draw());
$("canvas").addEventListener("click", (event) => {
  const index = picture.indexAt(event, view);
  if (index !== null) pin(index);
});

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  chooseFile(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (file) chooseFile(file);
});
addEventListener("hashchange", restore);

await restore();
document.body.dataset.ready = "true";
