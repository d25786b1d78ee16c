// Messages about the server, and the progress of the text.

import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { percent } from "../pure/numbers.ts";
import { reading } from "../store.ts";
import { words } from "../words/index.ts";
import { busyFor } from "./api.ts";
import { connection, health, restarted, tokenNeeded } from "./connection.ts";
import { prompt } from "./request.ts";
import { stop } from "./texts.ts";
import { writeNow } from "./write.tsx";

export const badAddress = signal<readonly string[]>([]);
export const otherModel = signal<{ theirs: string; own: string; write: () => void } | null>(null);

export function StatusBars() {
  const w = words.value.live;
  const now = health.value;
  const preparing = now.status === "starting" ? (now.stage === "compiling" ? percent(now.compiled) : w.loading) : null;
  return (
    <div class="bars" role="status">
      {connection.value === "lost" && <Bar kind="warning">{w.lost}</Bar>}
      {tokenNeeded.value && <Bar kind="warning">{w.token}</Bar>}
      {now.status === "stopping" && <Bar kind="warning">{w.stopping}</Bar>}
      {now.status === "failed" && <Bar kind="warning">{w.failed(now.error)}</Bar>}
      {preparing !== null && connection.value !== "lost" && <Bar>{w.preparing(preparing)}</Bar>}
      {busyFor.value > 0 && <Bar>{w.busy(busyFor.value)}</Bar>}
      {restarted.value && (
        <Bar
          kind="warning"
          close={() => {
            restarted.value = false;
          }}
        >
          {w.restarted}{" "}
          <button type="button" onClick={writeNow}>
            {w.writeAgain}
          </button>
        </Bar>
      )}
      {badAddress.value.length > 0 && (
        <Bar
          kind="warning"
          close={() => {
            badAddress.value = [];
          }}
        >
          {w.badAddress(badAddress.value.join(", "))}
        </Bar>
      )}
      {otherModel.value !== null && (
        <Bar
          kind="warning"
          close={() => {
            otherModel.value = null;
          }}
        >
          {w.otherModel(otherModel.value.theirs, otherModel.value.own)}{" "}
          <button
            type="button"
            onClick={() => {
              otherModel.value?.write();
              otherModel.value = null;
            }}
          >
            {w.withThis}
          </button>
        </Bar>
      )}
    </div>
  );
}

function Bar({ kind = "", close, children }: { kind?: string; close?: () => void; children: ComponentChildren }) {
  return (
    <p class={`status-bar ${kind}`}>
      <span>{children}</span>
      {close !== undefined && (
        <button type="button" class="icon" aria-label={words.value.live.dismiss} onClick={close}>
          ✕
        </button>
      )}
    </p>
  );
}

/** The progress of the text. Screen readers announce it at most every two seconds, and do not announce tokens. */
export function StateLine() {
  const w = words.value.live;
  const text = reading.value;
  const line =
    text === null || text.source === "document"
      ? ""
      : text.state === "queued"
        ? w.queued(text.place ?? 0)
        : text.state === "running"
          ? text.request?.continuation !== undefined
            ? w.reading
            : w.running(text.written, text.of, speed(text.written, text.seconds))
          : text.state === "stopped"
            ? w.stopped(text.written, text.of)
            : text.state === "failed"
              ? w.failedText(text.error ?? "")
              : w.done(text.written, text.seconds > 0 ? text.seconds.toFixed(1) : "");
  const heard = useSlowly(line, 2000);
  if (text === null || text.source === "document") return null;
  const ended = text.state === "done" || text.state === "stopped";
  return (
    <p class="state-line">
      <span class="number">{line}</span>
      <span class="offscreen" role="status">
        {heard}
      </span>
      {(text.state === "running" || text.state === "queued") && (
        <button
          type="button"
          onClick={() => {
            stop();
          }}
        >
          {text.state === "queued" ? words.value.cancel : words.value.write.stop}
        </button>
      )}
      {ended && text.written > 0 && (
        <button
          type="button"
          class="quiet"
          onClick={() => {
            prompt.value = text.runs.map(([, , piece]) => piece).join("");
            document.getElementById("prompt")?.focus();
          }}
        >
          {words.value.write.goOn}
        </button>
      )}
      {text.state === "failed" && (
        <button type="button" onClick={writeNow}>
          {words.value.again}
        </button>
      )}
    </p>
  );
}

const speed = (written: number, seconds: number) => (seconds > 0.2 ? `${Math.round(written / seconds)}` : "");

/** A throttled copy of a value. every: milliseconds. */
function useSlowly(value: string, every: number): string {
  const [slow, setSlow] = useState(value);
  const latest = useRef(value);
  latest.current = value;
  useEffect(() => {
    const timer = setInterval(() => setSlow(latest.current), every);
    return () => clearInterval(timer);
  }, [every]);
  return slow;
}
