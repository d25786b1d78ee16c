// Sharing: the link with the whole state in its fragment, and files.

import { signal } from "@preact/signals";
import { Checkbox } from "./checkbox.tsx";
import { copy } from "./dom.ts";
import { TOO_LONG } from "./pure/address.ts";
import { Menu } from "./menu.tsx";
import { model, reading } from "./store.ts";
import { words } from "./words/index.ts";

export type Format = "html" | "json" | "graph";
/** Set by live mode. export: resolves to an error message, or to null after the download. */
export const actions: {
  link?: () => Promise<string>;
  export?: (format: Format, parts: string[]) => Promise<string | null>;
} = {};

const note = signal("");
const busy = signal(false);
const parts = { inputs: signal(true), considered: signal(true), evidence: signal(false) };

export function ShareMenu() {
  const w = words.value.share;
  const text = reading.value;
  const canExport =
    text !== null &&
    text.source === "server" &&
    (text.state === "done" || text.state === "stopped") &&
    text.commits.length > 0;
  const link = async () => {
    const address = (await actions.link?.()) ?? location.href;
    note.value = address.length > TOO_LONG ? w.tooLong : (await copy(address)) ? w.copied : address;
  };
  const file = async (format: Format) => {
    busy.value = true;
    note.value = w.making;
    note.value =
      (await actions.export?.(
        format,
        Object.entries(parts)
          .filter(([, on]) => on.value)
          .map(([name]) => name),
      )) ?? "";
    busy.value = false;
  };
  return (
    <Menu id="share" label={`${w.title} ▾`}>
      <button type="button" class="wide" onClick={() => void link()}>
        {w.link}
      </button>
      <p class="quiet-text">{w.linkSays}</p>
      {canExport && (
        <>
          <h3>{w.files}</h3>
          <p class="switches">
            {(Object.keys(parts) as (keyof typeof parts)[])
              .filter((part) => part !== "evidence" || model.value?.index)
              .map((part) => (
                <Checkbox
                  key={part}
                  checked={parts[part].value}
                  onChange={(checked) => {
                    parts[part].value = checked;
                  }}
                >
                  {w[part]}
                </Checkbox>
              ))}
          </p>
          {(["html", "json", "graph"] as const).map((format) => (
            <button type="button" key={format} class="wide" disabled={busy.value} onClick={() => void file(format)}>
              {w[format]}
            </button>
          ))}
        </>
      )}
      <p role="status" class="note">
        {note.value}
      </p>
    </Menu>
  );
}
