// The server's health, the session of this tab, and its event stream, which resumes after an interruption.

import { signal } from "@preact/signals";
import { model } from "../store.ts";
import type { Model } from "../types.ts";
import { Failure, get, post, send } from "./api.ts";

export type Health =
  | { readonly status: "ok" }
  | { readonly status: "stopping" }
  | { readonly status: "failed"; readonly error: string }
  | { readonly status: "starting"; readonly stage?: string; readonly compiled: number };
export const health = signal<Health>({ status: "starting", compiled: 0 });
export const connection = signal<"waiting" | "open" | "lost">("waiting");
export const tokenNeeded = signal(false); // the address had none, or a wrong one
export const restarted = signal(false); // the server is another process than before

const LONGEST_WAIT = 30; // seconds between attempts, which double from 1
const EVENTS = ["commits", "state", "progress", "ready", "failed", "cancelled", "reload"] as const;
export type EventName = (typeof EVENTS)[number];

let session = "";
let epoch = "";
let lastId = "";
let source: EventSource | null = null;
let listener: (name: EventName, data: never) => void = () => {};
let began: (() => void)[] = []; // who waits for a session

/** Resolves to the path of this tab's session once it exists. */
export async function sessionPath(): Promise<string> {
  if (session === "") await new Promise<void>((resolve) => began.push(resolve));
  return `/api/sessions/${session}`;
}

/** Polls the health until the server is ready, and connects as soon as the model is loaded. */
export async function connect(listen: typeof listener): Promise<void> {
  listener = listen;
  void watchHealth();
  await open(1);
}

async function watchHealth(): Promise<void> {
  for (;;) {
    try {
      const answer = await fetch("/health");
      health.value = (await answer.json()) as Health;
    } catch {
      // a lost connection is noticed by the event stream
    }
    if (health.value.status === "ok" || health.value.status === "failed") return;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function open(wait: number): Promise<void> {
  const again = (longer = true) => {
    setTimeout(() => void open(longer ? Math.min(LONGEST_WAIT, 2 * wait) : 1), 1000 * wait);
  };
  try {
    if (session === "") await begin();
  } catch (error) {
    if (error instanceof Failure && error.code === "token_needed") {
      tokenNeeded.value = true;
      return;
    }
    if (error instanceof Failure && error.code === "failed") return; // the model was not loaded; /health says why
    if (!(error instanceof Failure && error.code === "preparing"))
      connection.value = error instanceof Failure && error.status === 0 ? "lost" : connection.value;
    again(!(error instanceof Failure && error.code === "preparing"));
    return;
  }
  listen(again, () => {
    wait = 1;
  });
}

async function begin(): Promise<void> {
  const made = await post<{ session: string; epoch: string }>("/api/sessions", {});
  if (epoch !== "" && epoch !== made.epoch) restarted.value = true;
  [session, epoch, lastId] = [made.session, made.epoch, ""];
  model.value = await get<Model>("/api/model");
  for (const resolve of began.splice(0)) resolve();
}

function listen(again: () => void, reached: () => void): void {
  const resume = lastId === "" ? "" : `?last_event_id=${encodeURIComponent(lastId)}`;
  const opened = (source = new EventSource(`/api/sessions/${session}/events${resume}`));
  opened.onopen = () => {
    reached();
    connection.value = "open";
  };
  for (const name of EVENTS) {
    opened.addEventListener(name, (event: MessageEvent<string>) => {
      if (event.lastEventId !== "") lastId = event.lastEventId;
      listener(name, JSON.parse(event.data) as never);
    });
  }
  opened.onerror = () => {
    opened.close(); // the browser's own attempts have no end and no message
    if (source !== opened) return;
    connection.value = "lost";
    void stillThere().then(() => again());
  };
}

/** Drops the session if the server does not have it any more, after a restart or a long pause of the tab. */
async function stillThere(): Promise<void> {
  try {
    await send("PUT", `/api/sessions/${session}/focus`, { text: null });
  } catch (error) {
    if (error instanceof Failure && error.status === 404) session = "";
  }
}
