// The live parts of the training-data panel: influence, building an index, and the document around a hit.

import { signal } from "@preact/signals";
import { formatSpan } from "../pure/address.ts";
import { model, reading, results, selection, type Waiting as State } from "../store.ts";
import type { Hit } from "../types.ts";
import { words } from "../words/index.ts";
import { Icon, Waiting } from "../panels/bars.tsx";
import { get } from "./api.ts";
import { askJob, dropJob, indexing } from "./texts.ts";

const failure = signal("");
const attempt = (work: Promise<void>) =>
  void work
    .then(() => {
      failure.value = "";
    })
    .catch((error: Error) => {
      failure.value = error.message;
    });

export function InfluenceButton() {
  const w = words.value.evidence;
  const [text, span] = [reading.value, selection.value];
  if (text === null || span === null || text.source !== "server" || !model.value?.index?.scores.includes("influence"))
    return null;
  const { waiting, error } = results.value.influence[formatSpan(span)] ?? {};
  if (waiting !== undefined) return <Running label={w.says.influence![0]} state={waiting} />;
  return (
    <p class="buttons">
      <button type="button" onClick={() => attempt(askJob("influence", text.id, span))}>
        {w.influence}
      </button>
      {(error ?? failure.value) !== "" && <span class="refusal">{error ?? failure.value}</span>}
    </p>
  );
}

export function IndexButton() {
  const w = words.value.evidence;
  if (indexing.value !== null)
    return <Running label={`${w.makingIndex} · ${indexing.value.stage}`} state={indexing.value} />;
  if (!model.value?.can_index || model.value.index !== null) return null;
  return (
    <p class="buttons">
      <button type="button" class="primary" onClick={() => attempt(askJob("index", null))}>
        {w.makeIndex}
      </button>
      {failure.value !== "" && <span class="refusal">{failure.value}</span>}
    </p>
  );
}

/** The progress of a long job, with a button that cancels it. */
function Running({ label, state }: { label: string; state: State }) {
  return (
    <div>
      <Waiting label={label} done={state.done} of={state.of} />
      {state.job && (
        <button type="button" onClick={() => attempt(dropJob(state.job!))}>
          {words.value.write.stop}
        </button>
      )}
    </div>
  );
}

// ---- a hit in its document

interface Passage {
  readonly document: number;
  readonly name: string;
  readonly source: string;
  readonly sha256: string;
  readonly from: number;
  readonly to: number;
  readonly tokens: number;
  readonly text: string;
}
const AROUND = 200; // tokens to either side
const shown = signal<{ readonly passage: Passage; readonly hit: Hit } | null>(null);

export function openPassage(hit: Hit, around = AROUND): void {
  const from = Math.max(0, hit.offset - around);
  const to = hit.offset + (hit.end - hit.start) + around;
  void get<Passage>(`/api/passages/${hit.document}?from=${from}&to=${to}`)
    .then((passage) => {
      shown.value = { passage, hit };
      requestAnimationFrame(() => {
        const dialog = document.getElementById("passage") as HTMLDialogElement | null;
        if (dialog !== null && !dialog.open) dialog.showModal();
      });
    })
    .catch((error: Error) => {
      failure.value = error.message;
    });
}

export function PassageDialog() {
  if (shown.value === null) return null;
  const w = words.value.evidence;
  const { passage, hit } = shown.value;
  const at = passage.text.indexOf(hit.text);
  const close = () => (document.getElementById("passage") as HTMLDialogElement).close();
  const width = passage.to - passage.from;
  return (
    <dialog
      id="passage"
      aria-label={w.passage(passage.name)}
      onClose={() => {
        shown.value = null;
      }}
    >
      <header>
        <h2>{passage.name}</h2>
        <Icon label={words.value.close} onClick={close}>
          ✕
        </Icon>
      </header>
      <p class="quiet-text">
        {passage.source} · <code>{passage.sha256.slice(0, 12)}</code> ·{" "}
        <span class="number">
          {passage.from}–{passage.to} / {passage.tokens}
        </span>
      </p>
      <pre lang="" tabIndex={0}>
        {at < 0
          ? passage.text
          : [passage.text.slice(0, at), <mark key="hit">{hit.text}</mark>, passage.text.slice(at + hit.text.length)]}
      </pre>
      {width < passage.tokens && width < 1000 && (
        <button type="button" class="quiet" onClick={() => openPassage(hit, width)}>
          {w.more}
        </button>
      )}
    </dialog>
  );
}
