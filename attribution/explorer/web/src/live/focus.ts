// Tells the server what is looked at, which is the only way work is begun: what is not looked at any more is cancelled.

import { effect } from "@preact/signals";
import { formatSpan } from "../pure/address.ts";
import { panel, pins, playing, reading, results, selection } from "../store.ts";
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
    // A focus has one step. The selected token's choice goes first; the ghosts of the slider's step follow it.
    const commit =
      [panel.value === "considered" ? lookedAtCommit.value : null, nextCommit.value].find(
        (one) => one !== null && consideredAt(text, one) === null,
      ) ?? null;
    // Who moves the slider will look at other steps too: all of them are quicker than one at a time, and for a text of
    // this length not too many to send.
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
    // The text's state is part of it: a text that has ended is explained from then on.
    const now = JSON.stringify([body, text.state]);
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
