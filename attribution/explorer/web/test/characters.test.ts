import assert from "node:assert/strict";
import { test } from "node:test";
import { emptyRuns, replaceRuns, runAt, textOf, visible } from "../src/pure/characters.ts";
import type { Run } from "../src/types.ts";

const runs: Run[] = [
  [0, 1, "a", true],
  [1, 4, "값", true],
  [4, 5, " b", true],
];

test("changed runs take the place of those that they overlap", () => {
  const half: Run[] = replaceRuns(emptyRuns(0, 4), [[1, 3, "�", false]]);
  assert.deepEqual(half, [
    [0, 1, "", true],
    [1, 3, "�", false],
    [3, 4, "", true],
  ]);
  assert.deepEqual(replaceRuns(half, [[1, 4, "값", true]]), [
    [0, 1, "", true],
    [1, 4, "값", true],
  ]);
  assert.deepEqual(replaceRuns([[0, 3, "값", true]], [[0, 1, "x", true]]), [
    [0, 1, "x", true],
    [1, 2, "", true],
    [2, 3, "", true],
  ]);
});

test("a position belongs to the run that holds it", () => {
  assert.deepEqual(
    [0, 1, 2, 3, 4, 99].map((at) => runAt(runs, at)),
    [0, 1, 1, 1, 2, 2],
  );
  assert.equal(textOf(runs, [1, 5]), "값 b");
});

test("white space can be seen in lists", () => {
  assert.equal(visible(" \n"), "␣↵");
  assert.equal(visible("a\nb"), "a ↵ b");
  assert.equal(visible("abcdef", 4), "abc…");
});
