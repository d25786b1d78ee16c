// The URL of the page and its history. A new text or selection adds an entry, a step replaces the current one.

import { computed, effect } from "@preact/signals";
import {
  type Address,
  LONG,
  TOO_LONG,
  formatAddress,
  formatSpan,
  pack,
  parseAddress,
  unpack,
} from "../pure/address.ts";
import { applyView, comparing, mode, model, others, reading, selection, viewAddress } from "../store.ts";
import { requestAddress } from "./request.ts";

/** The whole state: the request and the view. */
const address = computed<Address>(() => {
  const text = reading.value;
  const view = viewAddress();
  if (text === null || text.source === "document" || text.request === null) return view;
  const whole: Address = { ...requestAddress(text.request), ...view };
  if (comparing.value) whole.cmp = others.value.map(({ column }) => column);
  if (model.value !== null) whole.fp = model.value.fingerprint.slice(0, 8);
  return whole;
});

async function fragmentOf(value: Address): Promise<string> {
  const packed = value.p !== undefined && formatAddress(value).length > LONG ? await pack(value.p) : null;
  return formatAddress(value, packed);
}

/** The view alone, for an exported file. */
export function viewState(): string {
  const { case: _name, ...view } = viewAddress();
  return formatAddress(view);
}

/** The URL of the current state. */
export async function currentLink(): Promise<string> {
  return `${location.origin}${location.pathname}${await fragmentOf(address.peek())}`;
}

export function startHistory(open: (address: Address) => Promise<void>): void {
  let shown = ""; // text and selection of the current entry
  let applying = false; // Back was pressed: what follows from it makes no entry
  effect(() => {
    const value = address.value;
    const entry = `${reading.value?.id ?? ""} ${selection.value === null ? "" : formatSpan(selection.value)}`;
    if (reading.value === null) return;
    const push = shown !== "" && entry !== shown && !applying;
    shown = entry;
    void fragmentOf(value).then((fragment) => {
      if (fragment === location.hash || fragment.length > 4 * TOO_LONG) return;
      try {
        history[push ? "pushState" : "replaceState"](null, "", fragment === "" ? location.pathname : fragment);
      } catch {
        // throws without history, and after too many changes in a short time
      }
    });
  });
  window.addEventListener("popstate", () => {
    if (mode.peek() !== "live") return;
    const { address: wanted, packed } = parseAddress(location.hash);
    const now = address.peek();
    void (async () => {
      if (packed !== null) wanted.p = (await unpack(packed)) ?? "";
      applying = true;
      const sameText = formatAddress(requestPart(wanted)) === formatAddress(requestPart(now));
      if (sameText) {
        selection.value = null;
        applyView(wanted);
      } else await open(wanted);
      applying = false;
    })();
  });
}

/** The fields of an address that determine the text. */
function requestPart({ case: name, p, given, n, seed, t, top_p, rep, cfg, steps, amp, sup, clamp }: Address): Address {
  const part: Record<string, unknown> = {
    case: p === undefined ? name : undefined,
    p,
    given,
    n,
    seed,
    t,
    top_p,
    rep,
    cfg,
    steps,
    amp,
    sup,
    clamp,
  };
  return Object.fromEntries(Object.entries(part).filter(([, value]) => value !== undefined)) as Address;
}
