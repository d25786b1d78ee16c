"use strict";
// Renders the JSON document in #data. Texts are inserted with textContent only, so they are never parsed as HTML.
const doc = JSON.parse(document.getElementById("data").textContent);
const trace = doc.trace;
const promptLength = trace.prompt.length;
const canvas = document.getElementById("canvas");
const slider = document.getElementById("step");
const hasConcepts = doc.concepts !== null; // autoregressive models and bare backbones have none
const byPosition = new Map(doc.tokens.map((token) => [token.position, token]));
const steps = trace.commits.map((commit) => commit.step);
let selected = null; // position of the selected token

function make(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  const { text, ...rest } = options;
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(rest)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const signed = (value, digits = 2) => {
  const size = Math.abs(value).toFixed(digits);
  return (Number(size) === 0 ? "" : value > 0 ? "+" : "−") + size;
};
const percent = (value, digits = 0) => (100 * value).toFixed(digits) + " %";
const nameOf = (kind, id) => doc.concepts[kind][id] ?? `concept ${id}`;

// Characters that several tokens make together, by the position of each of these tokens.
const shared = new Map();
for (const [start, end, text, complete] of doc.characters ?? []) {
  for (let position = start; complete && end - start > 1 && position < end; position += 1) {
    shared.set(position, { start, end, text: text.replaceAll("\n", "↵") });
  }
}
// What a token is called in lists: its text, or the character of which it is a part.
const shown = (position) => {
  const run = shared.get(position);
  return run ? `${run.text} (${position - run.start + 1}/${run.end - run.start})` : doc.pieces[position].trim() || "␣";
};

// ---- the canvas

const isSpecial = (position) => !shared.has(position) && /^<.*>$/.test(doc.pieces[position]);

// A token's text on the canvas. The first token of a shared character shows it, the others a dot; while one of them is
// masked the character is not written yet, and each shows its own bytes.
function chipText(position, masked) {
  const run = shared.get(position);
  if (run && !masked.slice(run.start, run.end).includes(true)) return position === run.start ? run.text : "·";
  return doc.pieces[position].replaceAll("\\n", "↵") || "␣";
}

// Tokens of the prompt can be focused, so that a screen reader reads what they added, but not selected.
const chips = doc.pieces.map((piece, position) => {
  const chip = make("button", { type: "button", class: "chip", tabindex: "-1" });
  if (position < promptLength) chip.classList.add("prompt");
  if (isSpecial(position)) chip.classList.add("special");
  if (shared.has(position)) chip.classList.add("part");
  if (byPosition.has(position)) chip.setAttribute("aria-pressed", "false");
  chip.addEventListener("click", () => select(selected === position ? null : position));
  canvas.append(chip);
  if (piece.endsWith("\\n")) canvas.append(make("br"));
  return chip;
});
const first = doc.tokens.length ? Math.min(...byPosition.keys()) : 0;
chips[first].tabIndex = 0;

canvas.addEventListener("keydown", (event) => {
  const at = chips.indexOf(document.activeElement);
  const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: chips.length - 1 };
  if (event.key === "Escape") return select(null);
  if (at < 0 || !(event.key in moves)) return undefined;
  event.preventDefault();
  const next = chips[Math.max(0, Math.min(chips.length - 1, moves[event.key]))];
  chips[at].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  return undefined;
});

// Draws the canvas with the first `count` commits, as the slider is set.
function paint() {
  const count = Number(slider.value);
  const limit = count < steps.length ? steps[count] : Infinity;
  const token = selected === null ? null : byPosition.get(selected);
  const inputs = token?.inputs;
  const heat = new Map(inputs ? inputs.positions.map((position, i) => [position, inputs.attributions[i]]) : []);
  const most = Math.max(1e-12, ...[...heat.values()].map(Math.abs));
  const allMasked = chips.map((_, position) => {
    const own = byPosition.get(position);
    return position >= promptLength && (own ? own.step >= limit : count < steps.length);
  });
  chips.forEach((chip, position) => {
    const own = byPosition.get(position);
    const masked = allMasked[position];
    const value = masked ? undefined : heat.get(position);
    const text = chipText(position, allMasked);
    if (chip.textContent !== text) chip.textContent = text;
    chip.classList.toggle("masked", masked);
    chip.classList.toggle("later", Boolean(!masked && token && own && own !== token && own.step >= token.step));
    chip.classList.toggle("raises", value > 0);
    chip.classList.toggle("lowers", value < 0);
    // At most half: text on the deepest tint has a contrast of more than 4.5 : 1 in both colour schemes.
    chip.style.background = value !== undefined
      ? `rgb(var(--${value > 0 ? "for" : "against"}) / ${(0.08 + 0.42 * Math.abs(value) / most).toFixed(3)})` : "";
    if (own) chip.setAttribute("aria-pressed", String(position === selected));
    const place = `position ${position}` + (own ? `, step ${own.step}` : position < promptLength ? ", prompt" : "");
    chip.title = place + (value === undefined ? "" : `, ${signed(value)} logits`);
    chip.setAttribute("aria-label", `${masked ? "mask" : shown(position)}, ${chip.title}`);
  });
  document.getElementById("step-text").textContent = count < steps.length
    ? `before step ${limit} of ${steps[steps.length - 1]}` : "all tokens committed";
  document.getElementById("legend").textContent = !token ? ""
    : inputs ? `Green, underlined tokens raised the logit of “${shown(selected)}”, red tokens with a wavy line lowered it; `
      + `tokens with a dashed border were committed later. `
      + `The strongest colour is ${most.toPrecision(3)} logits.`
    : "Tokens with a dashed border were committed later.";
}

slider.max = String(steps.length);
slider.value = slider.max;
slider.addEventListener("input", paint);

// ---- tables

// One scale for each unit, over the whole page: equal lengths are equal shares, or equal logits.
const KINDS = ["known", "discovered", "epsilon"];
// A model without epsilon has a constant in its place, the same at every position.
const REST = doc.strict ? "constant" : "epsilon";
const sides = (item) => (hasConcepts ? KINDS.flatMap((kind) => [item.raised_shares[kind], item.lowered_shares[kind]]) : []);
const inputSizes = (item) => (item.inputs ? item.inputs.attributions : []);
const contributions = (token) => [...(token.known ?? []), ...(token.discovered ?? [])].map((entry) => entry.contribution);
const largest = (items, values) => items.reduce((most, item) => Math.max(most, ...values(item).map(Math.abs)), 1e-12);
const everything = [...doc.chunks, ...doc.tokens];
const SHARE = largest(everything, sides);
const LOGIT = largest(doc.tokens, (token) => [...contributions(token), ...inputSizes(token)]);
const CHUNK_LOGIT = largest(doc.chunks, inputSizes);

// A cell with a bar for what lowers to the left and one for what raises to the right of a line.
function meter(lowered, raised, most) {
  const bars = make("div", { class: "bars", "aria-hidden": "true" });
  for (const [value, name] of [[lowered, "against"], [raised, "for"]]) {
    const side = make("div", { class: "side" });
    if (value > 0) {
      const bar = make("div", { class: `bar ${name}` });
      bar.style.width = `${Math.min(100, (100 * value) / most)}%`;
      side.append(bar);
    }
    bars.append(side);
  }
  return make("td", { class: "meter" }, bars);
}

// rows: [label, value, text of the value, text of a value beside it (optional)]; most: the value of a full bar
function table(title, rows, empty, most) {
  const body = make("tbody");
  for (const [label, value, text, other] of rows) {
    const cells = [make("td", { class: "number", text }), meter(-value, value, most)];
    if (other !== undefined) cells.push(make("td", { class: "number", text: other }));
    body.append(make("tr", {}, ...cells, make("td", { text: label })));
  }
  if (!rows.length) body.append(make("tr", {}, make("td", { class: "hint", text: empty })));
  return make("div", {}, make("h3", { text: title }), make("table", {}, body));
}

// What known concepts, discovered concepts and epsilon add and take away: all six shares together are 100 %.
function parts(item) {
  const body = make("tbody");
  for (const kind of KINDS) {
    const [lowered, raised] = [item.lowered_shares[kind], item.raised_shares[kind]];
    body.append(make("tr", {}, make("td", { text: kind === "epsilon" ? REST : kind }), make("td", { class: "number", text: signed(-100 * lowered, 1) + " %" }),
      meter(lowered, raised, SHARE), make("td", { class: "number", text: signed(100 * raised, 1) + " %" })));
  }
  return make("div", { class: "parts" }, make("h3", { text: "all parts: lowering, raising; together 100 %" }), make("table", {}, body));
}

function inputTable(title, inputs, most) {
  const rows = inputs.positions.slice(0, 10).map((position, i) => {
    return [`${shown(position)} @${position}`, inputs.attributions[i], signed(inputs.attributions[i])];
  });
  return table(title, rows, "No token was visible: the canvas held only masks.", most);
}

// Each entry's value and, in another column, the same of the log-probability, unless the values are that already.
const beside = doc.reference !== "model";
const conceptRows = (kind, entries, value, other, text) =>
  entries.map((entry) => [nameOf(kind, entry.id), entry[value], text(entry[value]), beside ? text(entry[other]) : undefined]);
const ofProbability = beside ? ", of the log-probability" : "";

// What is subtracted from a logit before it is split, by reference.
const MEAN = { vocabulary: "the mean of all logits", model: "the mean logit under the model's own distribution" };

// ---- the selected token

function select(position) {
  selected = position !== null && byPosition.has(position) ? position : null;
  paint();
  const body = document.getElementById("details-body");
  const title = document.getElementById("details-title");
  if (selected === null) {
    title.textContent = "Token";
    body.replaceChildren(make("p", {
      class: "hint", text: position === null ? "No token is selected." : "This token is part of the prompt; select another token.",
    }));
    return;
  }
  const token = byPosition.get(selected);
  title.textContent = `“${shown(selected)}” at position ${selected}, committed in step ${token.step}`;
  const columns = make("div", { class: "columns" });
  for (const kind of hasConcepts ? ["known", "discovered"] : []) {
    const rows = conceptRows(kind, token[kind], "contribution", "log_probability", signed);
    if (rows.length) rows.push(["others", token[`other_${kind}`], signed(token[`other_${kind}`]), beside ? "" : undefined]);
    columns.append(table(`${kind} concepts, logits${ofProbability}`, rows, `no ${kind} concepts`, LOGIT));
  }
  if (token.inputs) columns.append(inputTable("from tokens @position, logits", token.inputs, LOGIT));
  const facts = [`Logit ${token.logit.toFixed(3)}.`];
  if (hasConcepts) {
    const reference = doc.reference === "raw" ? "" : ` minus ${MEAN[doc.reference]}, ${token.reference_logit.toFixed(3)}`;
    facts[0] = `Logit ${token.logit.toFixed(3)}${reference}, of which ${REST} ${signed(token.epsilon, 3)}; the parts sum to it `
      + `within ${token.share_error.toExponential(1)}.`;
  }
  if (token.inputs) {
    const start = doc.input_baseline === "mean embedding" ? "With the mean embedding in place of every token" : "With only masks";
    facts.push(`${start} the logit is ${token.inputs.baseline.toFixed(3)}; the tokens account for the difference within `
      + `${Math.abs(token.inputs.completeness_error).toExponential(1)} (${token.inputs.nodes} nodes`
      + `${token.inputs.converged ? "" : ", not within the tolerance"}).`);
  }
  body.replaceChildren(...(hasConcepts ? [parts(token)] : []), columns, make("p", { class: "hint", text: facts.join(" ") }));
}

// ---- chunks

function evidence(result) {
  const list = make("ul", { class: "evidence" });
  for (const hit of result.hits) {
    list.append(make("li", {}, make("strong", { text: hit.name }),
      ` — ${hit.score} ${Number(hit.value.toPrecision(3))}${hit.occurrences > 1 ? `, ${hit.occurrences} times` : ""}, `
        + `${hit.source}, from token ${hit.offset}`, make("q", { text: hit.text })));
  }
  if (result.nothing_close.length) {
    list.append(make("li", { class: "hint", text: `Nothing close by ${result.nothing_close.join(", ")}.` }));
  }
  const box = make("div", {}, make("h3", { text: "training data" }));
  for (const [score, sources] of Object.entries(result.sources)) {
    const parts = Object.entries(sources).map(([name, share]) => `${name} ${percent(share)}`);
    if (parts.length) box.append(make("p", { class: "key", text: `Sources by ${score}: ${parts.join(", ")}` }));
  }
  box.append(list);
  return box;
}

doc.chunks.forEach((chunk, number) => {
  const columns = make("div", { class: "columns" });
  for (const kind of hasConcepts ? ["known", "discovered"] : []) {
    columns.append(table(`${kind} concepts, signed share${ofProbability}`,
      conceptRows(kind, chunk[kind], "share", "log_probability_share", (value) => `${signed(100 * value, 1)} %`),
      `no ${kind} concepts`, SHARE));
  }
  if (chunk.inputs) columns.append(inputTable("from tokens @position, logits", chunk.inputs, CHUNK_LOGIT));
  const article = make("article", {}, make("h3", { text: `Chunk ${number + 1}: positions ${chunk.start} to ${chunk.end - 1}` }),
    make("blockquote", { text: chunk.text.replace(/^\n+|\n+$/g, "") }), ...(hasConcepts ? [parts(chunk)] : []), columns);
  if (chunk.evidence) article.append(evidence(chunk.evidence));
  document.getElementById("chunks").append(article);
});

// ---- header and footer

const about = document.getElementById("about");
const settings = trace.generation === null ? "a given text, read from left to right"
  : Object.entries(trace.generation).filter(([name, value]) => value !== null && name !== "seed")
    .map(([name, value]) => `${name} ${value}`).join(", ");
for (const [name, value] of [
  ["Model", `${trace.model.name} (${trace.model.fingerprint})`],
  ["Training data", trace.corpus ? `${trace.corpus.documents} documents (${trace.corpus.documents_sha256.slice(0, 16)})` : null],
  ["Settings", settings],
  ["Seed", trace.seed],
  ["Steering", trace.steering.join("; ") || null],
]) {
  if (value !== null) about.append(make("dt", { text: name }), make("dd", { text: String(value) }));
}
const errors = doc.errors;
const ofShares = hasConcepts ? `What is split and the sum of its parts differ by at most ${errors.largest_share_error.toExponential(1)}. ` : "";
document.getElementById("errors").textContent = ofShares + (errors.largest_completeness_error === null
    ? "Input attribution was not requested."
    : `The sum of the input tokens differs from the change of the logit by at most ${errors.largest_completeness_error.toExponential(1)}; `
      + `${errors.unconverged} of ${errors.targets} tokens are outside the tolerance.`)
  + (!hasConcepts ? "" : ` Each logit${doc.reference === "raw" ? "" : `, minus ${MEAN[doc.reference]},`} is a sum of parts: known concepts, discovered concepts and ${doc.strict ? "a constant" : "epsilon, which no concept explains"}. A share is a part`
  + " relative to the sum of the sizes of all parts of its token, a mean over the tokens of a chunk; a concept's share is the sum"
  + " of its parts with their signs. Bars to the right, in green, raise logits, bars to the left, in red, lower them; all bars of"
  + ` shares have one scale, on which the longest is ${percent(SHARE, 1)}.`);
if (!hasConcepts) {
  document.getElementById("hint").textContent = "Select a token to see, as colours and as a list, the tokens that it came from. "
    + "The arrow keys move, Enter selects, Escape clears the selection.";
}
paint();
