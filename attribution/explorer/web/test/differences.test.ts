import assert from "node:assert/strict";
import { test } from "node:test";
import { differing } from "../src/pure/differences.ts";

const marks = (a: string, b: string) =>
  differing([...a], [...b])
    .map((on) => (on ? "^" : "."))
    .join("");

test("what is not in the other text is marked", () => {
  assert.equal(marks("abcdef", "abcdef"), "......");
  assert.equal(marks("abcdef", "abXdef"), "..^...");
  assert.equal(marks("abcdef", "abdXef"), "...^..");
  assert.equal(marks("", "ab"), "^^");
  assert.equal(marks("ab", ""), "");
});
