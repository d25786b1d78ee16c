// Texts side by side that were sampled with the same random numbers. Differences from the first are underlined.

import { visible } from "./pure/characters.ts";
import { differing } from "./pure/differences.ts";
import { percent, plain } from "./pure/numbers.ts";
import type { Reading } from "./reading.ts";
import { signal } from "@preact/signals";
import { type Other, costs, others, reading } from "./store.ts";
import { language, words } from "./words/index.ts";

/** Set by live mode: showing one of the texts, and closing the comparison. */
export const actions: { keep?: (other: Other) => void; close?: () => void } = {};

const shownColumn = signal(0); // on narrow windows, where one column is shown at a time

const piecesOf = (text: Reading) =>
  text.runs.filter(([start]) => start >= text.promptLength).map(([, , piece]) => piece);

export function CompareView() {
  const w = words.value.compare;
  const all = others.value;
  const plainText = piecesOf(all[0]!.reading);
  const titles = words.value.steer.columns;
  return (
    <section class="compare" aria-label={w.title} lang={language.value}>
      <header>
        <h2>{w.title}</h2>
        <p>{w.says}</p>
        {actions.close !== undefined && (
          <button type="button" class="quiet" onClick={actions.close}>
            {w.close}
          </button>
        )}
      </header>
      <div class="column-tabs" role="group" aria-label={w.title}>
        {all.map((other, i) => (
          <button
            type="button"
            key={i}
            aria-pressed={shownColumn.value === i}
            onClick={() => {
              shownColumn.value = i;
            }}
          >
            {other.title || titles[other.column]}
          </button>
        ))}
      </div>
      <div class="columns">
        {all.map((other, i) => {
          const text = other.reading;
          const pieces = piecesOf(text);
          const marks = i === 0 ? [] : differing(plainText, pieces);
          const cost = text.document?.cost ?? costs.value[text.id]?.value;
          const current = reading.value?.id === text.id;
          return (
            <article
              key={other.column + i}
              class={[current && "current", shownColumn.value === i && "shown"].filter(Boolean).join(" ")}
            >
              <h3>{other.title || titles[other.column]}</h3>
              <p class="output" lang="" tabIndex={0}>
                {pieces.length === 0 || pieces.every((piece) => piece === "")
                  ? "…"
                  : pieces.map((piece, at) => (marks[at] ? <ins key={at}>{piece}</ins> : piece))}
              </p>
              <dl class="facts">
                <dt>{w.cost}</dt>
                <dd class="number">{cost === undefined ? "–" : plain(cost.nats_per_token)}</dd>
                <dt>{w.repeated}</dt>
                <dd class="number">{cost === undefined ? "–" : percent(cost.repeated_3_grams)}</dd>
              </dl>
              {current ? (
                <p class="quiet-text now">{w.keptNow}</p>
              ) : (
                <button
                  type="button"
                  onClick={() => (actions.keep ?? keep)(other)}
                  aria-label={`${w.keep}: ${visible(other.title || titles[other.column])}`}
                >
                  {w.keep}
                </button>
              )}
            </article>
          );
        })}
      </div>
      {all.some((other) => other.column === "random") && <p class="quiet-text">{w.caution}</p>}
    </section>
  );
}

/** In a file, the text is shown without its request. */
function keep(other: Other): void {
  reading.value = other.reading;
}
