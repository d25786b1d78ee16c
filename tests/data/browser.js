// Runs a page's script over the few parts of a browser that it uses, and tells what it made. Argument: a folder with
// page.js and data.json.
const fs = require("fs");
const folder = process.argv[2];

class Element {
  constructor(tag) {
    Object.assign(this, { tag, children: [], attributes: {}, listeners: {}, style: { setProperty() {} }, own: "" });
    const names = new Set();
    this.classList = {
      add: (name) => names.add(name),
      toggle: (name, on) => (on ? names.add(name) : names.delete(name)),
      contains: (name) => names.has(name),
    };
  }
  setAttribute(name, value) { this.attributes[name] = value; }
  append(...nodes) { this.children.push(...nodes); }
  replaceChildren(...nodes) { this.children = nodes; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  focus() { document.activeElement = this; }
  set textContent(text) { this.own = text; this.children = []; }
  get textContent() {
    return this.own + this.children.map((child) => (typeof child === "string" ? child : child.textContent)).join(" ");
  }
}

const byId = new Map();
global.document = {
  activeElement: null,
  createElement: (tag) => new Element(tag),
  getElementById(id) {
    if (!byId.has(id)) byId.set(id, new Element(id));
    return byId.get(id);
  },
};
document.getElementById("data").textContent = fs.readFileSync(`${folder}/data.json`, "utf8");
const doc = JSON.parse(document.getElementById("data").textContent);
new Function(fs.readFileSync(`${folder}/page.js`, "utf8"))();

const chips = document.getElementById("canvas").children.filter((node) => node.tag === "button");
const slider = document.getElementById("step");
const where = (holds) => chips.map((chip, i) => (holds(chip) ? i : -1)).filter((i) => i >= 0);
const masked = () => where((chip) => chip.classList.contains("masked"));
slider.value = "0";
slider.listeners.input();
const maskedAtStart = masked();
slider.value = slider.max;
slider.listeners.input();
const maskedAtEnd = masked();
chips[0].listeners.click(); // of the prompt
chips[doc.tokens[doc.tokens.length - 1].position].listeners.click();
const key = document.getElementById("canvas").listeners.keydown;
chips[1].focus();
key({ key: "ArrowRight", preventDefault() {} });
if (document.activeElement !== chips[2]) throw new Error("the arrow did not move");
console.log(JSON.stringify({
  chips: chips.length,
  chip_texts: chips.map((chip) => chip.textContent),
  masked_at_start: maskedAtStart,
  masked_at_end: maskedAtEnd,
  title: document.getElementById("details-title").textContent,
  details: document.getElementById("details-body").textContent,
  errors: document.getElementById("errors").textContent,
  coloured: where((chip) => Boolean(chip.style.background)),
  chunks: document.getElementById("chunks").children.length,
  text: document.getElementById("chunks").textContent,
}));
