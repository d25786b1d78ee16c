// The appearance of each run of the text, from the state of the page.

import type { Look } from "./canvas.ts";
import { visible } from "./pure/characters.ts";
import { plain, signed } from "./pure/numbers.ts";
import { inside } from "./pure/selection.ts";
import { type Reading, PROMPT, factsOf, isMasked, specialName } from "./reading.ts";
import { absolute, count, foldedSpan, hover, isPointed, pins, selection, strip } from "./store.ts";
import { ghosts, showsActivity, tints, values } from "./tints.ts";
import type { Run } from "./types.ts";
import { words } from "./words/index.ts";

/** The shares of known concepts, and of known and discovered ones together, in percent, for the line below a token. */
function sharesOf(text: Reading, position: number): readonly [number, number] {
  const token = factsOf(text).tokens.get(position);
  const shares = absolute.value ? token?.absolute_shares : token?.net_shares;
  if (!strip.value || !shares) return [-1, -1];
  const known = Math.round(100 * shares.known);
  return [known, known + Math.round(100 * shares.discovered)];
}

export function lookOf(text: Reading, run: Run, isNew: boolean): Look {
  const w = words.value;
  const [start, end, characters] = run;
  const prompt = factsOf(text).commitOf[start] === PROMPT;
  const masked = isMasked(text, run, count.value);
  const special = characters === "" && !masked;
  const ghost = masked ? ghosts.value.get(start) : undefined;
  const tint = tints.value.get(start) ?? null;
  const value = values.value.get(start);
  const step = text.commits[factsOf(text).commitOf[start] ?? -1]?.step;
  const shown = masked
    ? ghost === undefined
      ? "   "
      : ghost.text.replaceAll("\n", "↵")
    : special
      ? specialName(text, start) || "·"
      : withLineEnds(characters);
  const [known, discovered] = masked || prompt ? [-1, -1] : sharesOf(text, start);
  const on = [
    inside(foldedSpan.value, start) && "folded",
    prompt && "prompt",
    masked && (ghost === undefined ? "mask" : "ghost"),
    special && "special",
    inside(selection.value, start) && "on",
    selection.value?.[0] === start && "first",
    selection.value !== null && end >= selection.value[1] && start < selection.value[1] && "last",
    inside(hover.value, start) && "hovered",
    isPointed(start) && "pointed",
    isNew && "new",
    pins.value.some((pin) => inside(pin, start)) && "pinned",
    tint !== null && !masked && tint.sign,
    known >= 0 && "shared",
  ];
  const name = masked ? w.text.mask : special ? specialName(text, start) || "·" : visible(characters);
  const parts = [
    name,
    w.text.position(start),
    prompt ? w.text.ofPrompt : step === undefined ? "" : w.text.atStep(step),
  ];
  if (value !== undefined && !masked) parts.push(showsActivity.value ? plain(value) : w.text.logits(signed(value)));
  return {
    text: shown,
    classes: on.filter(Boolean).join(" "),
    tint: masked ? null : tint,
    known,
    discovered,
    thickness: ghost === undefined ? 0 : 1 + Math.round(4 * ghost.confidence),
    label: parts.filter(Boolean).join(", "),
    pressed: inside(selection.value, start),
  };
}

/** Line ends are visible in runs of white space, which could not be clicked otherwise. */
function withLineEnds(characters: string): string {
  return characters.trim() === "" ? characters.replaceAll("\n", "↵\n") : characters;
}
