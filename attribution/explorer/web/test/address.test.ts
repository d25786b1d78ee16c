import assert from "node:assert/strict";
import { test } from "node:test";
import { type Address, formatAddress, pack, parseAddress, unpack } from "../src/pure/address.ts";

test("an address survives being written and read", () => {
  const address: Address = {
    p: "re.split(pattern, string)\n«정규» & = # + %",
    n: 64,
    seed: 1,
    t: 0.7,
    top_p: 0.9,
    rep: 1.2,
    cfg: 1.5,
    steps: 8,
    amp: { Threads: 0.5, "a, b: c": 1 },
    sup: { "group:topic": -1 },
    at: [9, 42],
    step: 20,
    panel: "inputs",
    pin: [
      [3, 4],
      [7, 9],
    ],
    cmp: ["plain", "random"],
    case: "email",
    fp: "0123abcd",
    lang: "ko",
  };
  const { address: read, problems } = parseAddress(formatAddress(address));
  assert.deepEqual(problems, []);
  assert.deepEqual(JSON.parse(JSON.stringify(read)), JSON.parse(JSON.stringify(address)));
});

test("what is not understood is named, and the rest is applied", () => {
  const { address, problems } = parseAddress("#n=64&at=9-4&seed=-1&panel=none&bogus=1&p=%E0%A4&step=1.5&lang=en");
  assert.deepEqual(address, { n: 64, lang: "en" });
  assert.deepEqual(problems, ["at=9-4", "seed=-1", "panel=none", "bogus=1", "p=%E0%A4", "step=1.5"]);
});

test("any fragment gives an address", () => {
  let seed = 7;
  const random = () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648;
  const letters = "#&=%,:|-+.0129afnpzseedatep정\u{1F600}\ud800";
  for (let i = 0; i < 2000; i += 1) {
    const fragment = Array.from(
      { length: Math.floor(random() * 40) },
      () => letters[Math.floor(random() * letters.length)],
    ).join("");
    const { address } = parseAddress(fragment);
    parseAddress(formatAddress(address));
  }
});

test("a name of an object's own does not break strengths", () => {
  const { address } = parseAddress("amp=__proto__:1,constructor:0.5");
  assert.deepEqual(Object.keys(address.amp ?? {}), ["__proto__", "constructor"]);
});

test("a long prompt is packed, and a broken one is no text", async () => {
  const text = "정규 표현식 ".repeat(300);
  const packed = await pack(text);
  assert.ok(packed.length < 200 && /^[A-Za-z0-9_-]+$/.test(packed));
  assert.equal(await unpack(packed), text);
  assert.equal(await unpack("AAAA"), null);
  const { packed: read, address } = parseAddress(formatAddress({ p: text, n: 3 }, packed));
  assert.equal(read, packed);
  assert.deepEqual(address, { n: 3 });
});
