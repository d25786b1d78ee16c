// Requests to the server and their errors.

import { signal } from "@preact/signals";

export interface Refusal {
  readonly message: string;
  readonly param: string | null;
  readonly code: string | null;
}

/** An error response; status 0 if the server did not answer. */
export class Failure extends Error {
  readonly status: number;
  readonly param: string | null;
  readonly code: string | null;
  readonly retryAfter: number; // seconds

  constructor(status: number, refusal: Partial<Refusal>, retryAfter = 0) {
    super(refusal.message ?? `HTTP ${status}`);
    this.status = status;
    this.param = refusal.param ?? null;
    this.code = refusal.code ?? null;
    this.retryAfter = retryAfter;
  }
}

export const busyFor = signal(0); // seconds until a refused request is sent again by itself
const MOST_TRIES = 4;

async function once(method: string, path: string, body?: unknown): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, {
      method,
      // The server requires a JSON body for every request that changes something, also for DELETE.
      ...(method === "GET"
        ? {}
        : { headers: { "content-type": "application/json" }, body: JSON.stringify(body ?? {}) }),
    });
  } catch {
    throw new Failure(0, {});
  }
  if (answer.ok) return answer;
  const wait = Number(answer.headers.get("retry-after") ?? 0);
  const parsed = (await answer.json().catch(() => ({}))) as { error?: Partial<Refusal> };
  throw new Failure(answer.status, parsed.error ?? {}, Number.isFinite(wait) ? wait : 0);
}

const seconds = (count: number) => new Promise((resolve) => setTimeout(resolve, 1000 * count));

/** Sends a request. On 429 it is sent again after the time in Retry-After, up to a few times. */
export async function send(method: string, path: string, body?: unknown): Promise<Response> {
  for (let tries = 1; ; tries += 1) {
    try {
      return await once(method, path, body);
    } catch (error) {
      if (!(error instanceof Failure) || error.status !== 429 || tries >= MOST_TRIES) throw error;
      for (let left = Math.max(1, error.retryAfter); left > 0; left -= 1) {
        busyFor.value = left;
        await seconds(1);
      }
      busyFor.value = 0;
    }
  }
}

export async function get<T>(path: string): Promise<T> {
  return (await send("GET", path)).json() as Promise<T>;
}

export async function post<T>(path: string, body: unknown): Promise<T> {
  return (await send("POST", path, body)).json() as Promise<T>;
}
