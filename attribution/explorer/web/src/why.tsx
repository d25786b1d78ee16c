// The four panels about the selection.

import { effect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { canvas } from "./gestures.ts";
import { PANELS, type Panel, formatSpan } from "./pure/address.ts";
import { textOf, visible } from "./pure/characters.ts";
import { sameSpan } from "./pure/selection.ts";
import { factsOf } from "./reading.ts";
import { enlarged, held, letGo, panel, pins, reading, selection, togglePin } from "./store.ts";
import { Concepts } from "./panels/concepts.tsx";
import { Considered } from "./panels/considered.tsx";
import { Evidence } from "./panels/evidence.tsx";
import { Inputs } from "./panels/inputs.tsx";
import { words } from "./words/index.ts";

const CONTENT: Readonly<Record<Panel, () => preact.JSX.Element>> = {
  inputs: Inputs,
  concepts: Concepts,
  evidence: Evidence,
  considered: Considered,
};

export function Why() {
  const root = useRef<HTMLElement>(null);
  // In a narrow window the panels are a sheet over the bottom of the text; the selection is scrolled above it.
  useEffect(
    () =>
      effect(() => {
        const span = selection.value;
        if (span === null) return;
        // The layout of the sheet is known in the second frame after the change.
        requestAnimationFrame(() =>
          requestAnimationFrame(() => {
            const sheet = root.current;
            if (sheet === null || getComputedStyle(sheet).position !== "fixed") return;
            canvas.current?.reveal(span[0], sheet.getBoundingClientRect().height);
          }),
        );
      }),
    [],
  );
  const w = words.value;
  const chosen = panel.value;
  const Content = CONTENT[chosen];
  const move = (event: KeyboardEvent) => {
    const at = PANELS.indexOf(chosen);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: PANELS.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    panel.value = PANELS[(next + PANELS.length) % PANELS.length]!;
    document.getElementById(`tab-${panel.value}`)?.focus();
  };
  return (
    <aside
      ref={root}
      class={`why${selection.value === null ? "" : " open"}${enlarged.value ? " enlarged" : ""}`}
      id="why"
      aria-label={w.why.title}
      tabIndex={-1}
    >
      <Selected />
      <div role="tablist" aria-label={w.why.title} class="tabs" onKeyDown={move}>
        {PANELS.map((name) => (
          <button
            type="button"
            role="tab"
            id={`tab-${name}`}
            key={name}
            aria-selected={name === chosen}
            aria-controls="panel"
            tabIndex={name === chosen ? 0 : -1}
            onClick={() => {
              panel.value = name;
            }}
          >
            <b>{w.why.short[name]}</b>
            <span>{w.why.questions[name]}</span>
          </button>
        ))}
      </div>
      <div
        role="tabpanel"
        id="panel"
        aria-labelledby={`tab-${chosen}`}
        tabIndex={0}
        key={chosen}
        class={chosen === "concepts" ? "with-info" : undefined}
      >
        <Content />
      </div>
    </aside>
  );
}

/** The selected text, its position, and the buttons to pin and to release it. */
function Selected() {
  const w = words.value.why;
  const [text, span] = [reading.value, selection.value];
  const pinned = span !== null && pins.value.some((pin) => sameSpan(pin, span));
  const where = () => {
    if (text === null || span === null) return "";
    const step = text.commits[factsOf(text).commitOf[span[0]] ?? -1]?.step;
    const place = span[1] === span[0] + 1 ? words.value.text.position(span[0]) : w.positions(span[0], span[1] - 1);
    return span[1] === span[0] + 1 && step !== undefined ? `${place} · ${words.value.text.atStep(step)}` : place;
  };
  return (
    <div class="selected">
      {text === null || span === null ? (
        <h2>{w.whole}</h2>
      ) : (
        <>
          <h2>
            <q>{visible(textOf(text.runs, span), 60)}</q>
          </h2>
          <p class="number">{where()}</p>
          <p class="buttons">
            <button
              type="button"
              class="quiet"
              aria-pressed={enlarged.value}
              onClick={() => {
                enlarged.value = !enlarged.value;
              }}
            >
              {enlarged.value ? w.smaller : w.enlarge}
            </button>
            <button type="button" class="quiet" aria-pressed={pinned} onClick={() => togglePin(span)}>
              {pinned ? w.unpin : w.pin}
            </button>
            <button
              type="button"
              class="quiet"
              onClick={() => {
                held.value = null;
                letGo();
              }}
            >
              ✕ {w.letGo}
            </button>
          </p>
        </>
      )}
      {text !== null && pins.value.length > 0 && (
        <ul class="pins" aria-label={w.pins}>
          {pins.value.map((pin) => (
            <li key={formatSpan(pin)}>
              <button
                type="button"
                aria-pressed={sameSpan(pin, span)}
                onClick={() => {
                  selection.value = pin;
                }}
              >
                {visible(textOf(text.runs, pin), 18)}
              </button>
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}
