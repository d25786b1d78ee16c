// Sends the focus of the page to the server, which computes what is in focus and cancels the rest.

import { effect } from "@preact/signals";
import { formatSpan } from "../pure/address.ts";
import { attempts, panel, pins, playing, reading, results, selection } from "../store.ts";
import { ALL_STEPS, consideredAt, inputsOf, lookedAtCommit, nextCommit } from "../tints.ts";
import { send } from "./api.ts";
import { connection, sessionPath } from "./connection.ts";

const SHORT = 600; // positions
const QUIET = 60; // milliseconds without a change, so that a dragged slider asks once

export function startFocus(): void {
  let timer = 0;
  let last = "";
  effect(() => {
    const text = reading.value;
    if (text === null || text.source !== "server" || connection.value !== "open") {
      last = connection.value === "open" ? last : ""; // a new stream hears everything again
      return;
    }
    const span = selection.value;
    const panels = new Set<string>([panel.value]);
    // A focus has one step: that of the selected token, and when it is known, that of the slider.
    const commit =
      [panel.value === "considered" ? lookedAtCommit.value : null, nextCommit.value].find(
        (one) => one !== null && consideredAt(text, one) === null,
      ) ?? null;
    // When the slider is in use, other steps will follow. One request for all steps is faster than many, and for a text
    // of this length its answer is small enough.
    const allSteps =
      nextCommit.value !== null &&
      text.length <= SHORT &&
      (playing.value > 0 || commit === null) &&
      results.value.considered[ALL_STEPS]?.value === undefined &&
      !text.document?.considered;
    if (commit === null && !allSteps) panels.delete("considered");
    else panels.add("considered");
    if (panel.value === "inputs" && (span === null || inputsOf(text, span).value !== undefined))
      panels.delete("inputs");
    if (panel.value === "evidence" && span !== null && results.value.evidence[formatSpan(span)]?.value)
      panels.delete("evidence");
    const body = {
      text: text.id,
      at: span,
      step: commit === null || allSteps ? null : (text.commits[commit]?.step ?? null),
      panels: [...panels],
      pins: pins.value,
    };
    // The same focus starts work once the text has ended, and when failed work is asked for again.
    const now = JSON.stringify([body, text.state, attempts.value]);
    if (now === last) return;
    last = now;
    clearTimeout(timer);
    timer = window.setTimeout(() => {
      void sessionPath()
        .then((path) => send("PUT", `${path}/focus`, body))
        .catch(() => {
          last = "";
        });
    }, QUIET);
  });
}
