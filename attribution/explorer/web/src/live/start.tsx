// Live mode: shows the first example, connects to the server, and opens what the address requests.

import { effect } from "@preact/signals";
import { live, narrow } from "../app.tsx";
import { actions as caseActions } from "../cases.tsx";
import { actions as compareActions } from "../compare.tsx";
import { download } from "../dom.ts";
import { actions as keyActions } from "../keys.ts";
import { actions as cardActions } from "../panels/card.tsx";
import { additions } from "../panels/evidence.tsx";
import { type Address, parseAddress } from "../pure/address.ts";
import { applyView, cards, cases, costs, model, others, reading, selection, show, showCase } from "../store.ts";
import { actions as shareActions } from "../share.tsx";
import type { Card, Case, CaseEntry, Kind } from "../types.ts";
import { language } from "../words/index.ts";
import { currentLink, startHistory, viewState } from "./address.ts";
import { Failure, get, send } from "./api.ts";
import { connect, connection, restarted, sessionPath } from "./connection.ts";
import { InfluenceButton, IndexButton, PassageDialog, openPassage } from "./data.tsx";
import { startFocus } from "./focus.ts";
import { addressedRequest, edited, fill, measured, turn, turns } from "./request.ts";
import { StateLine, StatusBars, badAddress, otherModel } from "./status.tsx";
import { askJob, asking, explainAgain, receive, refreshAll, stop, write } from "./texts.ts";
import { WriteForm, columnsOf, writeNow } from "./write.tsx";

/** Starts live mode; resolves when the first text is shown. */
export async function startLive(address: Address, problems: readonly string[]): Promise<void> {
  Object.assign(live, { write: WriteForm, status: StatusBars, state: StateLine, dialogs: PassageDialog });
  Object.assign(additions, { influence: InfluenceButton, index: IndexButton, passage: openPassage });
  caseActions.open = (name) => void openCase(name, {});
  cardActions.explain = explainAgain;
  keyActions.stop = stop;
  keyActions.write = writeNow;
  cardActions.fetch = (kind, id) => void fetchCard(kind, id);
  cardActions.steer = (name, direction, known) => turn(name, direction, known);
  compareActions.close = () => {
    others.value = [];
  };
  compareActions.keep = (other) => {
    show(other.reading);
    if (other.reading.request !== null) fill(other.reading.request);
  };
  shareActions.link = currentLink;
  shareActions.export = exportFile;
  const { token, rest } = takeToken(problems);
  badAddress.value = rest;
  watch();
  await exchange(token);
  void connect(receive).then(startFocus);
  await open(address);
}

/** The token of an address for a server on another machine, which is exchanged for a cookie. */
function takeToken(problems: readonly string[]): { token: string | null; rest: readonly string[] } {
  const part = problems.find((problem) => problem.startsWith("token="));
  const token = /[#&]token=([^&]+)/.exec(location.hash)?.[1] ?? null;
  return { token, rest: problems.filter((problem) => problem !== part) };
}

async function exchange(token: string | null): Promise<void> {
  if (token === null) return;
  // The first request that needs a valid token reports a wrong one.
  await send("POST", "/api/token", { token: decodeURIComponent(token) }).catch(() => {});
  history.replaceState(null, "", location.hash.replace(/([#&])token=[^&]*&?/, "$1"));
}

/** Opens an address: writes its text, or shows its example, or else the first example. */
export async function open(address: Address): Promise<void> {
  const request = addressedRequest(address);
  const listed =
    cases.value.length > 0
      ? cases.value
      : await get<{ cases: CaseEntry[] }>("/api/cases")
          .then(({ cases: all }) => (cases.value = all))
          .catch((): CaseEntry[] => []);
  if (request === null && address.case === undefined && reading.value !== null) {
    applyView(address); // an address of a view alone, typed by hand
    return;
  }
  if (request === null) {
    const name = address.case ?? listed[0]?.name;
    if (name !== undefined) await openCase(name, address, address.case === undefined);
    // In one column the answers cover the text: a first visit begins with the text.
    if (Object.keys(address).length === 0 && narrow.value) selection.value = null;
    return;
  }
  fill(request);
  edited.value = true; // the example below must not fill the form
  if (reading.value === null && listed[0] !== undefined && model.value === null)
    await openCase(listed[0].name, {}, true);
  void measure();
  const settle = async () => {
    const columns = columnsOf(request, address.cmp ?? []);
    // Without `cmp` there is one column.
    const id = await write(columns.length > 0 ? columns : [{ column: "plain", request }]);
    if (id !== null) afterWriting(id, address);
  };
  if (address.fp === undefined) {
    await settle();
    return;
  }
  when(
    () => model.value !== null,
    () => {
      const own = model.value!.fingerprint.slice(0, 8);
      if (own === address.fp) void settle();
      else otherModel.value = { theirs: address.fp!, own, write: () => void settle() };
    },
  );
}

/** Calls `action` once, as soon as the condition on signals holds, and outside of the effect that observes them. */
function when(condition: () => boolean, action: () => void): void {
  let done = false;
  const stopWaiting = effect(() => {
    if (done || !condition()) return;
    done = true;
    queueMicrotask(() => {
      stopWaiting();
      action();
    });
  });
}

/** Applies the view of an address once its text has ended, if it is still shown. */
function afterWriting(id: string, address: Address): void {
  when(
    () => reading.value?.id !== id || !["queued", "running"].includes(reading.value.state),
    () => {
      if (reading.value?.id === id) applyView(address);
    },
  );
}

/** Shows an example. initial: it was not requested, and must not replace what the user has begun meanwhile. */
async function openCase(name: string, address: Address, initial = false): Promise<void> {
  try {
    const one = await get<Case>(`/api/cases/${encodeURIComponent(name)}`);
    if (initial && (asking.value || reading.value !== null)) return;
    showCase(one, language.value);
    if (one.request && !(initial && edited.value)) fill(one.request);
    const own = parseAddress(one.state ?? "").address;
    const view = { ...own, ...address };
    applyView(view);
    const first = one.document.chunks[0];
    if (selection.value === null && view.at === undefined && first !== undefined)
      selection.value = [first.start, first.end];
  } catch (error) {
    if (!(error instanceof Failure) || error.status !== 404) return;
    badAddress.value = [...badAddress.value, `case=${name}`];
    const first = cases.value[0];
    if (reading.value === null && first !== undefined && first.name !== name) await openCase(first.name, {}, true);
  }
}

/** Converts the strengths of an address to multiples of the measured ones, which the dials show. */
async function measure(): Promise<void> {
  await sessionPath(); // the model is loaded
  for (const one of turns.value) {
    const { concepts } = await get<{ concepts: Card[] }>(
      `/api/concepts?limit=5&q=${encodeURIComponent(one.name)}`,
    ).catch(() => ({ concepts: [] }));
    const exact = concepts.find(({ name, steer }) => name === one.name || steer === one.name);
    if (exact !== undefined)
      turns.value = turns.value.map((other) => (other.name === one.name ? measured(other, exact) : other));
  }
}

async function fetchCard(kind: Kind, id: number): Promise<void> {
  if (cards.value[`${kind}:${id}`] !== undefined) return;
  const card = await get<Card>(`/api/concepts/${kind}/${id}`).catch(() => null);
  if (card !== null) cards.value = { ...cards.value, [`${kind}:${id}`]: card };
}

async function exportFile(format: string, parts: string[]): Promise<string | null> {
  const text = reading.value;
  if (text === null) return null;
  try {
    const answer = await send("POST", "/api/export", { text: text.id, as: format, with: parts, state: viewState() });
    const name =
      /filename=([^;]+)/.exec(answer.headers.get("content-disposition") ?? "")?.[1] ?? `${text.id}.${format}`;
    download(name, await answer.blob());
    return null;
  } catch (error) {
    return error instanceof Failure ? error.message : String(error);
  }
}

function watch(): void {
  startHistory(open);
  // After a lost connection all texts are fetched again.
  let before = connection.value;
  effect(() => {
    const now = connection.value;
    if (now === "open" && before === "lost") {
      refreshAll();
      // A new process has no costs.
      if (restarted.value) costs.value = {};
    }
    before = now;
  });
  // The costs of compared texts are requested as soon as all of them have ended.
  const asked = new Set<string>();
  effect(() => {
    const all = others.value.map((other) => other.reading).filter((text) => text.source === "server");
    if (!all.every((text) => text.state === "done" || text.state === "stopped")) return;
    for (const text of all) {
      if (asked.has(text.id) || text.commits.length === 0) continue;
      asked.add(text.id);
      void askJob("cost", text.id).catch(() => asked.delete(text.id));
    }
  });
}
