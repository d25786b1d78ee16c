import assert from "node:assert/strict";
import { test } from "node:test";
import { en } from "../src/words/en.ts";
import { ko } from "../src/words/ko.ts";

/** Every word of a language by its path; functions as what they give for numbers. */
function leaves(value: unknown, path = ""): Map<string, string> {
  const found = new Map<string, string>();
  if (typeof value === "string") found.set(path, value);
  else if (typeof value === "function")
    found.set(path, String((value as (...args: unknown[]) => unknown)(3, 7, "1.5")));
  else if (value !== null && typeof value === "object") {
    for (const [name, inner] of Object.entries(value))
      for (const [at, text] of leaves(inner, `${path}.${name}`)) found.set(at, text);
  }
  return found;
}

test("Korean has the same words as English, none empty", () => {
  assert.deepEqual([...leaves(ko).keys()].sort(), [...leaves(en).keys()].sort());
  for (const [path, text] of leaves(ko)) assert.notEqual(text, "", path);
});

test("no sentence of Korean is English", () => {
  for (const [path, text] of leaves(ko)) {
    if (path.startsWith(".help.keys") || path === ".steer.promptInstead") continue; // names of keys; a prompt for an English model
    assert.ok(!/([a-z]{2,} ){3,}/.test(text), `${path}: ${text}`);
  }
});
