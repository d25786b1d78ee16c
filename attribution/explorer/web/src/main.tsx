// The entry point: shows the document of a file, or starts live mode.

import { effect } from "@preact/signals";
import { render } from "preact";
import { App } from "./app.tsx";
import { formatAddress, parseAddress, unpack } from "./pure/address.ts";
import { startKeys } from "./keys.ts";
import { startLive } from "./live/start.tsx";
import { readDocument } from "./reading.ts";
import { applyView, mode, selection, show, showCase, viewAddress } from "./store.ts";
import type { Case, Document } from "./types.ts";
import { language } from "./words/index.ts";

async function start(): Promise<void> {
  const root = document.getElementById("app")!;
  const stored = document.getElementById("document");
  const { address, problems, packed } = parseAddress(
    location.hash.length > 1 ? location.hash : (root.dataset.state ?? ""),
  );
  if (address.lang !== undefined) language.value = address.lang;
  if (stored === null) {
    mode.value = "live";
    if (packed !== null) address.p = (await unpack(packed)) ?? "";
    // Rendering waits for the first example, so that the layout does not shift when it arrives.
    await Promise.race([startLive(address, problems), new Promise((resolve) => setTimeout(resolve, 400))]);
  } else {
    const found = JSON.parse(stored.textContent ?? "null") as Document | Case;
    if ("document" in found) showCase(found, language.value);
    else show(readDocument(found, "document"));
    const first = ("document" in found ? found.document : found).chunks[0];
    if (first !== undefined) selection.value = [first.start, first.end];
    if (Object.keys(address).length > 0)
      applyView({ ...(first === undefined ? {} : { at: [first.start, first.end] as const }), ...address });
    keepAddress();
  }
  startKeys();
  render(<App />, root);
}

/** Writes the view of a file into its URL, so that it can be bookmarked. */
function keepAddress(): void {
  effect(() => {
    const fragment = formatAddress(viewAddress());
    try {
      history.replaceState(null, "", fragment || "#");
    } catch {
      // throws in the frame of a notebook
    }
  });
  window.addEventListener("hashchange", () => applyView(parseAddress(location.hash).address));
}

void start();
