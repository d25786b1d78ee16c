import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { blend, contrast, tintOf } from "../src/pure/colours.ts";

type Colour = readonly [number, number, number];
const css = readFileSync("src/style/base.css", "utf8");

/** A variable of a block of the style: "#rrggbb" or "r g b". */
function colour(block: string, name: string): Colour {
  const text = new RegExp(`${name}: ([^;]+);`).exec(block)![1]!;
  const parts = text.startsWith("#")
    ? [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16))
    : text.split(" ").map(Number);
  return [parts[0]!, parts[1]!, parts[2]!];
}

test("tints grow with their value, and their sign is that of the value", () => {
  assert.equal(tintOf(0.001, 1), null);
  assert.equal(tintOf(-1, 1)?.sign, "down");
  assert.ok(tintOf(0.5, 1)!.alpha < tintOf(1, 1)!.alpha);
});

test("text has a contrast of 4.5 on the deepest tint, and soft text on every ground", () => {
  const schemes = {
    light: css.slice(css.indexOf(":root {"), css.indexOf("}")),
    dark: css.slice(css.indexOf('[data-theme="dark"]'), css.indexOf("@media")),
  };
  for (const [name, block] of Object.entries(schemes)) {
    const ink = colour(block, "--ink");
    for (const sign of ["--up", "--down"]) {
      const ground = blend(colour(block, sign), tintOf(1, 1)!.alpha, colour(block, "--paper"));
      assert.ok(contrast(ink, ground) >= 4.5, `${name} ${sign}: ${contrast(ink, ground)}`);
    }
    for (const ground of ["--page", "--paper", "--field", "--choice"]) {
      assert.ok(contrast(colour(block, "--soft"), colour(block, ground)) >= 4.5, `${name} ${ground}`);
    }
  }
});
