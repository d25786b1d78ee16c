// Keys of the whole page. Single keys of the text act only while it has the focus (gestures.ts).

import { canvas } from "./gestures.ts";
import { card, letGo, panel } from "./store.ts";

/** Set by live mode. stop: returns whether a text was being written. */
export const actions: { stop?: () => boolean; write?: () => void } = {};

export function startKeys(): void {
  let composed = false; // Ctrl+Enter came while a Hangul syllable was unfinished: it is written when that has ended
  document.addEventListener("keydown", (event) => {
    const typing =
      event.target instanceof Element && event.target.matches("input:not([type=range],[type=checkbox]), textarea");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (event.isComposing) composed = true;
      else if (!event.repeat) actions.write?.();
    } else if (event.key === "Escape" && !event.defaultPrevented) {
      if (document.querySelector(":popover-open") !== null) return; // the browser closes it
      // The order is: close the card, stop writing, release the highlight or the selection.
      if (card.value !== null || !(actions.stop?.() ?? false)) letGo();
    } else if (event.key === "F6") {
      event.preventDefault();
      nextPart(event.shiftKey ? -1 : 1);
    } else if (event.key === "/" && !typing && document.activeElement !== document.body) {
      event.preventDefault();
      panel.value = "concepts";
      requestAnimationFrame(() => document.getElementById("concept-filter")?.focus());
    }
  });
  document.addEventListener("compositionend", () => {
    if (composed) setTimeout(() => actions.write?.()); // after the field has its final text
    composed = false;
  });
}

function nextPart(direction: 1 | -1): void {
  const parts = ["write", "text", "why"].map((id) => document.getElementById(id)).filter((one) => one !== null);
  const now = parts.findIndex((part) => part.contains(document.activeElement));
  const next = parts[(now + direction + parts.length) % parts.length];
  if (next?.id === "text") canvas.current?.setActive(canvas.current.activeIndex);
  else (next?.querySelector<HTMLElement>("textarea, [role=tab][aria-selected=true]") ?? next)?.focus();
}
