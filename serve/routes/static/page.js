// The search page. All that the service says is shown as text, never parsed as HTML.
"use strict";

const STATE_EVERY_MS = 5000;
const COMMON = new Set(
  ("a an and are as at be by do does for from how i in is it of on or that the this to was what when where which who " +
    "why will with you").split(" "),
);
const WORD = /[\p{L}\p{N}_]+/gu;
/** A condition of a filter: field, comparison, value. */
const CONDITION = /^([^<>=!]+?)\s*(<=|>=|!=|=|<|>)\s*(.*)$/;
const BOUNDS = { "<": "lt", "<=": "lte", ">": "gt", ">=": "gte" };
/** A number of our metrics: name, labels, value. */
const SAMPLE = /^ray_embedder_(\w+?)(?:\{(.*)\})? (\S+)$/gm;
const LOAD_OVER_MS = 30000;

const byId = (id) => document.getElementById(id);
const [form, query, task, k, mode, rerank, index, beside, filter, key] =
  ["form", "query", "task", "k", "mode", "rerank", "index", "beside", "filter", "key"].map(byId);
let asking = new AbortController();
let refreshing = 0;
/** Version by alias. */
let served = new Map();
/** Looks at the metrics, the oldest first. */
let looks = [];

/** An element with a class, holding text or other elements. */
function make(tag, name, ...parts) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...parts.map((part) => (part instanceof Node ? part : String(part))));
  return element;
}

/** The answer to a request, or an Error that says what the service said. */
async function call(path, body, signal) {
  const headers = key.value ? { Authorization: `Bearer ${key.value}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer. Is it running, and can this machine reach it?");
  }
  if (response.ok) return path === "metrics" ? response.text() : response.json();
  let said = response.statusText;
  try {
    said = (await response.json()).error.message;
  } catch {
    // Not our service, or one that is gone: the status must do.
  }
  if (response.status === 401) key.focus();
  const wait = response.headers.get("Retry-After");
  throw new Error(`${response.status}: ${said}${wait ? ` (again in ${wait} s)` : ""}`);
}

/** Show options, keeping the choice where it is still one. */
function offer(select, options, chosen) {
  const wanted = select.length ? select.value : chosen;
  const values = JSON.stringify(options);
  if (select.dataset.options === values) return;
  select.dataset.options = values;
  select.replaceChildren(...options.map(([value, label]) => Object.assign(make("option", "", label), { value })));
  select.value = options.some(([value]) => value === wanted) ? wanted : options[0]?.[0];
}

function problem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

/** What is served: fills the choices and the tables. */
async function showState(first = new URLSearchParams()) {
  clearTimeout(refreshing);
  try {
    const [indexes, state] = await Promise.all([call("v1/indexes"), call("v1/state")]);
    served = new Map(indexes.data.map((one) => [one.name, one]));
    const names = [...served.keys()];
    const all = [...new Set(indexes.data.flatMap((one) => Object.keys(one.collections)))];
    // Those that can be searched come first, so that one of them is chosen where nothing was asked for.
    const tasks = [...all.filter(hasDocuments), ...all.filter((one) => !hasDocuments(one))];
    offer(task, tasks.map((one) => [one, one]), first.get("task"));
    offer(index, names.map((one) => [one, one]), first.get("index") ?? names[0]);
    const second = names.find((one) => one !== (first.get("index") ?? names[0]));
    offer(beside, [["", "nothing"], ...names.map((one) => [one, one])], first.get("beside") ?? second ?? "");
    byId("indexes").replaceChildren(...indexes.data.map(indexRow));
    byId("replicas").replaceChildren(...state.data.map(replicaRow));
    const ready = state.data.every((one) => one.status === "HEALTHY");
    health(ready ? "ready" : "some replicas are not ready", !ready);
  } catch (error) {
    health(error.message, true);
  }
  showLoad();
  refreshing = setTimeout(() => (document.hidden ? 0 : showState()), STATE_EVERY_MS);
}

/** How many documents of a task an alias serves. */
const documentsOf = (alias, name) => served.get(alias)?.collections[name]?.documents ?? 0;
const hasDocuments = (name) => [...served.keys()].some((alias) => documentsOf(alias, name));

function health(text, bad) {
  if (byId("health").textContent === text) return;
  byId("health").textContent = text;
  byId("health").className = bad ? "bad" : "";
}

/** Requests a second and what waits, from the metrics of the last half minute; nothing for a key that may not ask. */
async function showLoad() {
  const text = await call("metrics").catch(() => "");
  const sums = {};
  for (const [, name, labels, value] of text.matchAll(SAMPLE)) {
    // What this page asks by itself is no load.
    if (/route="\/(v1\/indexes|v1\/state|metrics)"/.test(labels)) continue;
    sums[name] = (sums[name] ?? 0) + Number(value);
  }
  const now = { at: performance.now(), requests: sums.requests_total, seconds: sums.request_duration_seconds_sum };
  looks = [...looks.filter((look) => now.at - look.at < LOAD_OVER_MS), now];
  const [before] = looks;
  const requests = now.requests - before.requests;
  const said = [`${sums.queue_depth ?? 0} texts wait`];
  const rate = (1000 * requests) / (now.at - before.at);
  if (rate >= 0) said.unshift(`${rate.toFixed(1)} requests/s`);
  if (requests > 0) said.push(`${ms((1000 * (now.seconds - before.seconds)) / requests)} each`);
  byId("load").textContent = said.join(", ");
  byId("load").hidden = !text;
}

const row = (...cells) => make("tr", "", ...cells.map((cell) => make("td", "", cell)));

function indexRow(one) {
  const sizes = Object.entries(one.collections).map(
    ([name, size]) => `${name} ${size.documents.toLocaleString("en")}${size.uncompacted ? ` (${size.uncompacted} new)` : ""}`,
  );
  return row(one.name, one.version, one.model, one.dimension, one.shards, sizes.join(", "));
}

function replicaRow(one) {
  const counts = Object.entries(one.replicas).map(([state, count]) => `${count} ${state.toLowerCase()}`);
  return row(one.name, one.status.toLowerCase(), counts.join(", ") || "none");
}

/** The filter that is typed in: conditions such as `year >= 2020, kind = a`, all of which must hold, or the JSON itself. */
function wanted(typed) {
  if (!typed.trim()) return undefined;
  if (typed.trim().startsWith("{")) return read(typed, () => { throw new Error("The filter is no JSON."); });
  const clauses = { must: [], must_not: [] };
  for (const part of typed.split(",")) {
    const [, field, how, text] = part.trim().match(CONDITION) ?? [];
    if (!field || !text) throw new Error(`The filter "${part.trim()}" is not like: year >= 2020`);
    const value = read(text, () => text);
    const condition = BOUNDS[how] ? { range: { [BOUNDS[how]]: value } } : { match: { value } };
    clauses[how === "!=" ? "must_not" : "must"].push({ key: field, ...condition });
  }
  return clauses;
}

function read(text, otherwise) {
  try {
    return JSON.parse(text);
  } catch {
    return otherwise();
  }
}

/** Ask every chosen index, and show what each found as soon as all have answered. */
async function search() {
  let conditions;
  try {
    conditions = wanted(filter.value);
  } catch (error) {
    problem(error.message);
    return;
  }
  asking.abort();
  const { signal } = (asking = new AbortController());
  const aliases = [...new Set([index.value, beside.value].filter(Boolean))];
  const fields = { query: query.value, task: task.value, k: k.valueAsNumber, mode: mode.value, filter: conditions };
  const shown = { task: task.value, q: query.value, k: k.value, mode: mode.value };
  Object.assign(shown, { index: index.value, beside: beside.value });
  if (rerank.value) shown.rerank = rerank.value;
  if (filter.value) shown.filter = filter.value;
  history.replaceState(null, "", `#${new URLSearchParams(shown)}`);
  byId("answers").classList.add("busy");
  byId("answers").setAttribute("aria-busy", "true");
  const asked = aliases.map((alias) => ask(alias, fields, signal));
  const answers = await Promise.allSettled(asked);
  if (signal.aborted) return;
  byId("answers").classList.remove("busy");
  byId("answers").setAttribute("aria-busy", "false");
  const failed = answers.find((one) => one.status === "rejected");
  problem(failed ? failed.reason.message : "");
  const found = answers.filter((one) => one.status === "fulfilled").map((one) => one.value);
  const words = new Set([...fields.query.toLowerCase().matchAll(WORD)].map(([word]) => word));
  const telling = [...words].filter((word) => !COMMON.has(word));
  byId("answers").replaceChildren(...found.map((one) => answer(one, found, telling)));
  const first = document.querySelector(".hit");
  if (first) first.tabIndex = 0;
}

/** The answer of one index, and beside it those that show why: by vectors and by words, or before the reranker. */
async function ask(alias, fields, signal) {
  const plain = { ...fields, index: alias };
  const from = rerank.valueAsNumber || undefined;
  const parts = fields.mode === "hybrid" ? ["dense", "lexical"].map((one) => ({ ...plain, mode: one, k: from ?? plain.k })) : [];
  if (from) parts.push({ ...plain, k: from });
  const began = performance.now();
  const searches = [{ ...plain, rerank_from: from }, ...parts.map((one) => ({ ...one, with_payload: false }))];
  const answers = parts.length
    ? (await call("v1/search/batch", { searches }, signal)).answers
    : [await call("v1/search", plain, signal)];
  const [body, ...others] = answers;
  const why = others.map((other, place) => [parts[place].mode, other.results[0]]);
  const total = Math.max(...answers.map((one) => one.time_ms.total));
  return { alias, body, why, network: Math.max(0, performance.now() - began - total) };
}

/** What one index found: its versions, where the time went, its hits. */
function answer({ alias, body, why, network }, all, words) {
  const { encode, search: searching, rerank: reranking, total } = body.time_ms;
  const stages = [["encode", encode], ["search", searching], ["network", network]];
  if (reranking) stages.splice(2, 0, ["rerank", reranking]);
  const bar = make("div", "stages", ...stages.map(([name, time]) => {
    const part = make("span", name);
    part.style.flexGrow = String(time);
    return part;
  }));
  bar.setAttribute("aria-hidden", "true");
  const times = make("p", "times", ...stages.flatMap(([name, time]) => [make("i", name), `${name} `, make("b", "", ms(time))]));
  times.append("\u2002total ", make("b", "", ms(total + network)));
  const other = all.find((one) => one.alias !== alias);
  const places = new Map(other?.body.results[0].map((hit, place) => [named(hit), place]));
  const hits = body.results[0].map((hit, place) => hitOf(hit, place, other && { alias: other.alias, places }, why, words));
  const list = hits.length ? make("ol", "hits", ...hits) : make("p", "nothing", nothing(alias));
  const versions = make("p", "versions", `model ${body.model_version}, index ${body.index_version}`);
  const heading = make("h2", "", alias, make("small", "", ` ${served.get(alias)?.version ?? ""}`));
  const whole = make("section", "answer", heading, versions, times, bar, list);
  whole.setAttribute("aria-label", `hits of ${alias}`);
  whole.dataset.index = alias;
  return whole;
}

const nothing = (alias) =>
  documentsOf(alias, task.value) ? "Nothing found." : `${alias} has no documents of the task ${task.value}.`;
const named = (hit) => JSON.stringify([hit.dataset, hit.id]);
const ms = (time) => `${time < 10 ? time.toFixed(1) : time.toFixed(0)} ms`;

function hitOf(hit, place, other, why, words) {
  const head = make("div", "head", make("span", "rank", place + 1), make("span", "title", ...marked(hit.title || hit.id, words)));
  if (other) head.append(make("span", "move", moved(place, other.places.get(named(hit)), other.alias)));
  const score = make("span", "score", hit.score.toFixed(4));
  score.title = "score";
  head.append(score);
  const text = make("p", "text", ...marked(hit.text ?? "", words));
  const about = Object.entries({ id: hit.id, dataset: hit.dataset, ...hit.metadata });
  const details = make("p", "details", about.map(([name, value]) => `${name}: ${written(value)}`).join(", "));
  const item = make("li", "hit", head, text);
  if (why.length) item.append(make("p", "why", why.map((one) => standing(hit, ...one)).join(", ")));
  item.append(details);
  item.tabIndex = -1;
  item.dataset.id = hit.id;
  return item;
}

/** Where a hit stands in one ranking of which the answer was made, and its score there. */
function standing(hit, ranking, hits) {
  const place = hits.findIndex((one) => named(one) === named(hit));
  if (place < 0) return `${ranking}: not in its first ${hits.length}`;
  return `${ranking}: rank ${place + 1}, ${hits[place].score.toFixed(4)}`;
}

/** A value of the metadata; objects as JSON. */
function written(value) {
  return [value].flat().some((one) => typeof one === "object") ? JSON.stringify(value) : value;
}

/** Where the same document stands in the other list. */
function moved(place, elsewhere, alias) {
  if (elsewhere === undefined) return `not in ${alias}`;
  if (elsewhere === place) return "=";
  return `${elsewhere > place ? "▲" : "▼"}${Math.abs(elsewhere - place)}`;
}

/** The text as nodes, words of the query marked; `sort` marks `sorts` too. */
function marked(text, words) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(WORD)) {
    if (!words.some((word) => alike(word, found[0].toLowerCase()))) continue;
    parts.push(text.slice(end, found.index), make("mark", "", found[0]));
    end = found.index + found[0].length;
  }
  return [...parts, text.slice(end)];
}

function alike(one, other) {
  const [short, long] = one.length < other.length ? [one, other] : [other, one];
  return short === long || (short.length > 3 && long.length - short.length < 4 && long.startsWith(short));
}

/** Arrows move through the hits and between the indexes; Enter unfolds one. */
function move(event) {
  const hit = event.target.closest(".hit");
  const lists = [...document.querySelectorAll("ol.hits")];
  const at = lists.findIndex((list) => list.contains(hit));
  if (event.key === "/" && !event.target.closest("input, select")) {
    query.focus();
    query.select();
  } else if (event.key === "Escape" && hit) {
    query.focus();
  } else if (event.key === "ArrowDown" && event.target === query) {
    focusOn(document.querySelector(".hit"));
  } else if (hit && event.key === "Enter") {
    hit.classList.toggle("open");
  } else if (hit && event.key === "ArrowDown") {
    focusOn(hit.nextElementSibling);
  } else if (hit && event.key === "ArrowUp") {
    focusOn(hit.previousElementSibling ?? query);
  } else if (hit && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    const place = [...lists[at].children].indexOf(hit);
    const list = lists[at + (event.key === "ArrowLeft" ? -1 : 1)];
    focusOn(list?.children[Math.min(place, list.children.length - 1)]);
  } else {
    return;
  }
  event.preventDefault();
}

/** Only the hit that was last on is reached by Tab. */
function focusOn(element) {
  if (!element) return;
  if (element !== query) {
    document.querySelectorAll(".hit").forEach((hit) => (hit.tabIndex = -1));
    element.tabIndex = 0;
  }
  element.focus();
}

function start() {
  const first = new URLSearchParams(location.hash.slice(1));
  query.value = first.get("q") ?? "";
  k.value = first.get("k") ?? k.value;
  rerank.value = first.get("rerank") ?? "";
  filter.value = first.get("filter") ?? "";
  if ([...mode.options].some((one) => one.value === first.get("mode"))) mode.value = first.get("mode");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  for (const choice of [task, k, mode, rerank, index, beside, filter]) {
    choice.addEventListener("change", () => query.value && form.requestSubmit());
  }
  key.addEventListener("change", () => showState());
  document.addEventListener("keydown", move);
  document.addEventListener("visibilitychange", () => document.hidden || showState());
  byId("answers").addEventListener("click", (event) => {
    if (!String(getSelection())) event.target.closest(".hit")?.classList.toggle("open");
  });
  query.focus();
  showState(first).then(() => query.value && task.value && search());
}

start();
