import assert from "node:assert/strict";
import { test } from "node:test";
import { rangeSpan, spanAt, wordSpan } from "../src/pure/selection.ts";
import type { Run } from "../src/types.ts";

const texts = ["re", ".", "split", "(", "a", ",", " b", ")", "\n", "The", " end", "정"];
const runs: Run[] = texts.map((text, at): Run => [at, at + 1, text, true]);
runs[11] = [11, 14, "정", true];
const chunks = [{ start: 9, end: 14 }];

test("a word ends at white space", () => {
  assert.deepEqual(wordSpan(runs, 2), [0, 6]);
  assert.deepEqual(wordSpan(runs, 7), [6, 8]);
  assert.deepEqual(wordSpan(runs, 8), [8, 9]);
  assert.deepEqual(wordSpan(runs, 12), [10, 14], "a character of several tokens is taken whole");
});

test("a click takes a chunk, and a word where there is none", () => {
  assert.deepEqual(spanAt(runs, chunks, 10, "chunk"), [9, 14]);
  assert.deepEqual(spanAt(runs, chunks, 1, "chunk"), [0, 6]);
  assert.deepEqual(spanAt(runs, chunks, 13, "token"), [11, 14]);
});

test("a range is of whole words in either direction", () => {
  assert.deepEqual(rangeSpan(runs, 7, 2), [0, 8]);
  assert.deepEqual(rangeSpan(runs, 2, 7), [0, 8]);
  assert.deepEqual(rangeSpan(runs, 2, 4, "token"), [2, 5]);
});
