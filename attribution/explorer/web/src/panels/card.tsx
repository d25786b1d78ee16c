// The card of a concept: its description, the words that it promotes, and buttons to steer by it.

import { useLayoutEffect, useRef } from "preact/hooks";
import { blockOf, cardOf, nameOf } from "../concepts.ts";
import { place } from "../dom.ts";
import { visible } from "../pure/characters.ts";
import { percent, plain } from "../pure/numbers.ts";
import { card, mode, model, reading } from "../store.ts";
import type { Card as CardData, Kind } from "../types.ts";
import { words } from "../words/index.ts";
import { Icon } from "./bars.tsx";

/** Set by live mode: fetching a card, steering by its concept, and asking again for the concepts of a text. */
export const actions: {
  fetch?: (kind: Kind, id: number) => void;
  steer?: (name: string, direction: 1 | -1, known: CardData) => void;
  explain?: (text: string) => void;
} = {};

export function openCard(kind: Kind, id: number, anchor: HTMLElement): void {
  card.value = card.value?.kind === kind && card.value.id === id ? null : { kind, id, anchor };
  if (card.value !== null) actions.fetch?.(kind, id);
}

export function ConceptCard() {
  const root = useRef<HTMLDivElement>(null);
  const at = card.value;
  useLayoutEffect(() => {
    if (at === null || root.current === null) return;
    place(root.current, at.anchor);
    root.current.focus();
  });
  if (at === null || reading.value === null) return null;
  const w = words.value.card;
  const text = reading.value;
  const { kind, id, anchor } = at;
  const details = cardOf(text, kind, id);
  const name = nameOf(text, kind, id);
  const close = () => {
    card.value = null;
    anchor.focus();
  };
  const steer = (direction: 1 | -1) => {
    actions.steer?.(details?.steer ?? (kind === "known" ? name : `${kind}:${id}`), direction, details ?? {});
    close();
  };
  return (
    <div
      ref={root}
      class="card"
      role="dialog"
      aria-label={name}
      tabIndex={-1}
      onKeyDown={(event) => {
        if (event.key === "Escape") {
          event.stopPropagation();
          close();
        }
      }}
    >
      <div class="head">
        <h3>{name}</h3>
        <Icon label={words.value.close} onClick={close}>
          ✕
        </Icon>
      </div>
      <p class="quiet-text">
        {kind === "known" ? w.known : kind === "discovered" ? w.discovered : w.feature(blockOf(kind))}
        {details?.group ? ` · ${words.value.concepts.groupName(details.group)}` : ""} · #{id}
      </p>
      {details?.description && <p>{details.description}</p>}
      {details?.largest && <p class="quiet-text">{w.size(percent(details.density ?? 0, 2), plain(details.largest))}</p>}
      {details?.promotes && details.promotes.length > 0 && (
        <>
          <h4>{w.promotes}</h4>
          <p class="pieces">
            {details.promotes.map((piece, i) => (
              <code key={i}>{piece.trim() || "␣"}</code>
            ))}
          </p>
        </>
      )}
      {details?.examples && details.examples.length > 0 && (
        <>
          <h4>{w.examples}</h4>
          <ul class="examples" lang="">
            {details.examples.slice(0, 3).map((text, i) => (
              <li key={i}>{visible(text, 120)}</li>
            ))}
          </ul>
        </>
      )}
      {details?.is_named === false && !kind.startsWith("feature:") && <p class="quiet-text">{w.unnamed}</p>}
      {details === undefined && mode.value === "file" && <p class="quiet-text">{w.notStored}</p>}
      {details?.steer === null && <p class="quiet-text">{w.unmeasured}</p>}
      {details?.steer !== null && mode.value === "live" && model.value !== null && actions.steer !== undefined && (
        <p class="buttons">
          <button type="button" onClick={() => steer(1)}>
            {w.amplify}
          </button>
          <button type="button" onClick={() => steer(-1)}>
            {w.suppress}
          </button>
        </p>
      )}
    </div>
  );
}
