// The texts of this tab: requesting them, applying their events, and fetching results.

import { batch, signal } from "@preact/signals";
import { formatSpan } from "../pure/address.ts";
import type { Column } from "../pure/address.ts";
import { type Reading, factsOf, newReading, withCommits } from "../reading.ts";
import {
  type Other,
  costs,
  model,
  others,
  reading,
  results,
  setResult,
  show,
  shownCase,
  unexplained,
  type Waiting,
} from "../store.ts";
import type {
  Commit,
  Considered,
  Cost,
  Document,
  Evidence,
  Inputs,
  Model,
  Run,
  Span,
  TextRequest,
  TextState,
} from "../types.ts";
import { Failure, type Refusal, get, post, send } from "./api.ts";
import { type EventName, restarted, sessionPath } from "./connection.ts";

export const refused = signal<Refusal | null>(null); // why the last request was refused
export const indexing = signal<Waiting | null>(null); // the index that is being made
export const asking = signal(false); // a request is on its way, or waits for the model

const texts = new Map<string, Reading>();
/** Events of texts whose first answer has not arrived. Its content may be older than they are, so they are kept. */
const early = new Map<string, (() => void)[]>();

function isEarly(id: string, again: () => void): boolean {
  if ((texts.get(id)?.length ?? 0) > 0) return false;
  early.set(id, [...(early.get(id) ?? []), again]);
  return true;
}

/** Replaces a text everywhere it is shown. */
function put(text: Reading): void {
  batch(() => {
    texts.set(text.id, text);
    if (reading.value?.id === text.id) reading.value = text;
    if (others.value.some((other) => other.reading.id === text.id)) {
      others.value = others.value.map((other) => (other.reading.id === text.id ? { ...other, reading: text } : other));
    }
  });
}

/** Requests a text. again: one that is shown and finished, which a restarted server does not have. Throws `Failure`. */
async function ask(request: TextRequest, again = false): Promise<Reading> {
  const path = await sessionPath();
  const { text, cached } = await post<{ text: string; cached: boolean }>(`${path}/texts`, request);
  const old = texts.get(text);
  // A stopped text that is requested again begins from nothing.
  const started = old !== undefined && (cached || again) ? old : newReading(text, request, request.max_tokens ?? 0);
  texts.set(text, { ...started, request });
  await refresh(text);
  return texts.get(text)!;
}

export interface ColumnRequest {
  readonly column: Column;
  readonly request: TextRequest;
}

/**
 * Requests a text and the texts of its comparison, and shows the steered one, or else the last. Resolves to the id of
 * the text that is shown, or to null if a request was refused.
 */
export async function write(all: readonly ColumnRequest[]): Promise<string | null> {
  if (asking.value) return null;
  asking.value = true;
  refused.value = null;
  restarted.value = false;
  try {
    const made: Other[] = [];
    for (const { column, request } of all) {
      try {
        made.push({ column, title: "", reading: await ask(request) });
      } catch (error) {
        // Without support for random directions the other columns are compared.
        if (!(column === "random" && error instanceof Failure && error.param === "random_direction")) throw error;
      }
    }
    const shown = made.find(({ column }) => column === "steered") ?? made.at(-1)!;
    batch(() => {
      shownCase.value = null;
      show(texts.get(shown.reading.id)!);
      others.value = made.length > 1 ? made.map((other) => ({ ...other, reading: texts.get(other.reading.id)! })) : [];
    });
    return shown.reading.id;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    refused.value = { message: error.message, param: error.param, code: error.code };
    return null;
  } finally {
    asking.value = false;
  }
}

/** Stops all texts that are being written. Returns whether there were any. */
export function stop(): boolean {
  const running = [...texts.values()].filter(({ state }) => state === "running" || state === "queued");
  for (const { id } of running)
    void sessionPath()
      .then((path) => send("DELETE", `${path}/texts/${id}`))
      .catch(() => {});
  return running.length > 0;
}

interface TextAnswer extends TextState {
  readonly prompt: readonly number[];
  readonly commits: readonly Commit[];
  readonly characters: readonly Run[];
  readonly document: Document | null;
}

/** Fetches a text from the server. */
async function refresh(id: string): Promise<void> {
  const answer = await get<TextAnswer>(`/api/texts/${id}`);
  const old = texts.get(id);
  // Events can arrive before this answer and be newer.
  if (old === undefined || (old.commits.length > answer.commits.length && old.document === null)) return;
  const runs = answer.characters;
  put({
    ...old,
    ...stateOf(answer),
    promptLength: answer.prompt.length,
    length: runs.at(-1)?.[1] ?? 0,
    runs,
    commits: answer.commits,
    document: answer.document ?? old.document,
  });
  const events = early.get(id) ?? [];
  early.delete(id);
  for (const again of events) again();
}

function stateOf({ state, place, written, of, seconds, error }: TextState) {
  return { state, place, written, of, seconds, error };
}

/** Fetches all texts again, after a lost connection or more events than the server keeps. */
export function refreshAll(): void {
  for (const [id, text] of texts) {
    void refresh(id).catch((error: unknown) => {
      if (!(error instanceof Failure) || error.status !== 404) return;
      // A restarted server does not have the text. A finished one is requested again, which gives the same text; one
      // that was being written is left to the user.
      if (text.state === "done" && text.request !== null) void ask(text.request, true).catch(() => {});
      else if (text.state === "running" || text.state === "queued") {
        put({ ...text, state: text.written > 0 ? "stopped" : "failed", error: error.message });
      }
    });
  }
}

interface About {
  readonly job?: string | null;
  readonly text: string;
  readonly kind: string;
  readonly at: Span | number | null;
  readonly href?: string;
  readonly stage?: string;
  readonly done?: number;
  readonly of?: number;
  readonly error?: { readonly message: string };
}

export function receive(name: EventName, data: never): void {
  if (name === "commits") grow(data);
  else if (name === "state") follow(data);
  else if (name === "reload") refreshAll();
  else if (name === "cancelled") ended(data);
  else void about(name, data);
}

/** Clears the progress of a job that the user cancelled; jobs that left the focus have nothing to clear. */
function ended({ job, kind }: About): void {
  if (kind === "index") indexing.value = null;
  const left = Object.entries(results.value.influence).filter(([, { waiting }]) => waiting?.job !== job);
  results.value = { ...results.value, influence: Object.fromEntries(left) };
}

function grow({ text: id, commits, characters }: { text: string; commits: Commit[]; characters: Run[] }): void {
  if (isEarly(id, () => grow({ text: id, commits, characters }))) return;
  const text = texts.get(id)!;
  const { commitOf } = factsOf(text);
  const fresh = commits.filter((commit) => commit.positions.some((at) => (commitOf[at] ?? -2) < -1));
  if (fresh.length > 0) put(withCommits({ ...text, state: "running" }, fresh, characters));
}

function follow(state: TextState): void {
  if (isEarly(state.text, () => follow(state))) return;
  const text = texts.get(state.text)!;
  const ended = ["done", "stopped", "failed"].includes(text.state);
  if (state.written < text.written || (ended && !["done", "stopped", "failed"].includes(state.state))) return; // older
  put({ ...text, ...stateOf(state) });
  if (state.state === "done" || state.state === "stopped") void refresh(state.text).catch(() => {});
}

/** Handles an event of a job, and fetches the result of a finished one. */
async function about(name: "progress" | "ready" | "failed", event: About): Promise<void> {
  const { kind, text, at } = event;
  if (kind === "index") {
    const { stage = "", done = 0, of = 1 } = event;
    indexing.value = name === "progress" ? { stage, done, of, job: "index" } : null;
    if (name === "ready") {
      // Verbatim search is ready before the other scores, so evidence is requested again each time.
      model.value = await get<Model>("/api/model");
      results.value = { ...results.value, evidence: {} };
    }
    return;
  }
  if (kind === "concepts" || kind === "given") {
    if (name === "ready") await refresh(text).catch(() => {});
    if (name === "failed") setUnexplained(text, event.error?.message);
    return;
  }
  const influence = event.href?.includes("influence") ?? false;
  const key = Array.isArray(at) ? formatSpan(at as unknown as Span) : `${at}`;
  const place =
    kind === "cost" ? null : kind === "inputs" || kind === "considered" ? kind : influence ? "influence" : "evidence";
  const set = (value: { value?: unknown; waiting?: Waiting; error?: string }) => {
    if (place === null) costs.value = { ...costs.value, [text]: value as { value?: Cost } };
    else if (reading.value?.id === text) setResult(place, key, value as { value?: Inputs & Considered & Evidence });
  };
  if (name === "failed") set({ error: event.error?.message ?? "" });
  else if (name === "progress") {
    if (place !== null && results.value[place][key]?.value !== undefined) return;
    set({ waiting: { stage: event.stage ?? "", done: event.done ?? 0, of: event.of ?? 1, job: event.job } });
  } else if (event.href !== undefined) {
    try {
      set({ value: await get(event.href) });
    } catch {
      // the server dropped the result; the next focus computes it again
    }
  }
}

export async function askJob(
  kind: "concepts" | "cost" | "influence" | "index",
  text: string | null,
  at: Span | null = null,
): Promise<void> {
  const path = await sessionPath();
  await post(`${path}/jobs`, { kind, ...(text === null ? {} : { text }), ...(at === null ? {} : { at }) });
}

/** Asks again for the concepts of a text, which failed. */
export function explainAgain(text: string): void {
  setUnexplained(text);
  void askJob("concepts", text).catch((error: Error) => setUnexplained(text, error.message));
}

function setUnexplained(text: string, error?: string): void {
  unexplained.value = { ...unexplained.value, [text]: error };
}

/** Cancels a job of `askJob`. */
export async function dropJob(job: string): Promise<void> {
  await send("DELETE", `${await sessionPath()}/jobs/${job}`);
  if (job === "index") indexing.value = null; // no event follows, since other tabs may go on with it
}
