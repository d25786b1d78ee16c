// The text, and the legend that says what its tints mean.

import { effect } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { Canvas } from "./canvas.ts";
import { canvas, focused, moved, pressed, released, typed } from "./gestures.ts";
import { lookOf } from "./look.ts";
import { count, folded, foldedSpan, held, hover, openPosition, pointer, reading, selection, step } from "./store.ts";
import { knownInputs, showsActivity, tints } from "./tints.ts";
import type { Run } from "./types.ts";
import { words } from "./words/index.ts";

export function TextView() {
  const root = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    // A layout effect runs before the first paint, so that the layout does not shift.
    const made = (canvas.current = new Canvas(root.current!));
    return effect(() => {
      const text = reading.value;
      if (text === null) return;
      made.arrange(text);
      const next = count.value;
      // Tokens of the last commit are outlined while a text is written and while the slider is in use.
      const fresh = new Set(step.value !== null || text.state === "running" ? text.commits[next - 1]?.positions : []);
      made.draw((run) => lookOf(text, run, rangeHas(run, fresh)));
      root.current!.dataset.writes = `${made.writes}`;
    });
  }, []);
  const w = words.value;
  const hidden = foldedSpan.value;
  return (
    <>
      {hidden !== null && (
        <button
          type="button"
          class="quiet unfold"
          onClick={() => {
            folded.value = false;
          }}
        >
          {w.text.unfold(hidden[1] - hidden[0])}
        </button>
      )}
      <div
        ref={root}
        id="text"
        class="canvas"
        role="group"
        aria-label={w.text.title}
        aria-describedby="text-hint"
        lang=""
        onPointerDown={pressed}
        onPointerMove={moved}
        onPointerUp={released}
        onPointerLeave={() => {
          hover.value = null;
        }}
        onKeyDown={typed}
        onFocusIn={focused}
      />
    </>
  );
}

function rangeHas(run: Run, positions: ReadonlySet<number>): boolean {
  for (let at = run[0]; at < run[1]; at += 1) if (positions.has(at)) return true;
  return false;
}

/** A sentence that explains the current tints of the text. */
export function Legend() {
  const w = words.value.text;
  const at = pointer.value ?? held.value;
  const tinted = tints.value.size > 0;
  const says =
    at !== null && "id" in at
      ? showsActivity.value
        ? w.legendActive
        : w.legendConcept
      : at !== null && "input" in at
        ? w.legendInput(...knownInputs.value)
        : at !== null
          ? w.legendSpan
          : openPosition.value !== null
            ? w.legendOpen
            : tinted
              ? w.legendInputs
              : selection.value === null
                ? w.hint
                : w.legendNone;
  return (
    <p class="legend" id="text-hint">
      {tinted && !showsActivity.value && (
        <span class="key">
          <i class="up" />
          {w.raised}
          <i class="down" />
          {w.lowered}
        </span>
      )}
      {says}
    </p>
  );
}
