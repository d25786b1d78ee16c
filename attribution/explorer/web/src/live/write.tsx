// The form for writing: prompt, settings and steering.

import { signal } from "@preact/signals";
import { Checkbox } from "../checkbox.tsx";
import { type Column } from "../pure/address.ts";
import { model } from "../store.ts";
import type { TextRequest } from "../types.ts";
import { words } from "../words/index.ts";
import { health } from "./connection.ts";
import { SETTINGS, compareWith, edited, given, prompt, request, settings, turns } from "./request.ts";
import { AddConcept, Steer } from "./steer.tsx";
import { type ColumnRequest, asking, refused, write } from "./texts.ts";

const unfolded = signal(false);

/** Submits the form, with steering together with the texts of the comparison. */
export function writeNow(): void {
  if (prompt.value === "" || asking.value) return;
  void write(columnsOf(request.value, compareWith.value));
}

/** The requests of a comparison, which differ in steering or prompt only. */
export function columnsOf(own: TextRequest, columns: readonly Column[]): ColumnRequest[] {
  if (own.steering === undefined) return [{ column: "plain", request: own }];
  const { steering, ...plain } = own;
  // A feature without a name has nothing to write about.
  const names = Object.keys(steering.amplify ?? {})
    .map((name) => turns.value.find((one) => one.name === name)?.label ?? name)
    .filter((name) => !name.startsWith("feature:"))
    .join(", ");
  const others: Readonly<Record<Column, ColumnRequest["request"] | null>> = {
    plain,
    steered: own,
    random: { ...own, random_direction: true },
    prompt: names === "" ? null : { ...plain, prompt: words.value.steer.promptInstead(names) + plain.prompt },
  };
  const wanted: ColumnRequest[] = [];
  for (const column of ["plain", "steered", "random", "prompt"] as const) {
    const made = others[column];
    if (made !== null && (column === "steered" || columns.includes(column))) wanted.push({ column, request: made });
  }
  return wanted;
}

/** The server's error message, shown at the field that it names. */
export function Refused({ at }: { at: readonly (string | null)[] }) {
  const found = refused.value;
  if (found === null || !at.includes(found.param)) return null;
  return (
    <p class="refusal" role="alert">
      {found.message}
    </p>
  );
}

const NAMED = ["prompt", "continuation", "steering", "random_direction", ...SETTINGS] as readonly (string | null)[];

export function WriteForm() {
  const w = words.value.write;
  const empty = prompt.value === "";
  const labels = {
    max_tokens: w.tokens,
    seed: w.seed,
    temperature: w.temperature,
    top_p: w.top_p,
    repetition_penalty: w.repetition,
    cfg_scale: w.cfg,
    steps: w.steps,
  };
  const failed = health.value.status === "failed";
  const shown = unfolded.value ? SETTINGS : (["max_tokens", "seed"] as const);
  const concepts = model.value?.concepts;
  const canSteer =
    given.value === null &&
    (concepts === undefined || concepts.known + concepts.discovered + model.value!.features.length > 0);
  return (
    <form
      class="write"
      id="write"
      onInput={() => {
        edited.value = true;
      }}
      aria-label={w.title}
      onSubmit={(event) => {
        event.preventDefault();
        writeNow();
      }}
    >
      <label for="prompt" class="field-name">
        {w.prompt}
      </label>
      <textarea
        id="prompt"
        rows={Math.min(10, Math.max(2, prompt.value.split("\n").length))}
        lang=""
        placeholder={w.placeholder}
        value={prompt.value}
        onInput={(event) => {
          prompt.value = event.currentTarget.value;
        }}
        spellcheck={false}
        aria-describedby="write-note"
      />
      <Refused at={["prompt", null]} />
      <div class="write-row">
        {given.value === null &&
          shown.map((name) => (
            <label key={name} class="setting">
              {labels[name]}
              <input
                type="text"
                inputMode="decimal"
                value={settings.value[name] ?? ""}
                placeholder={w.asDefault}
                onInput={(event) => {
                  settings.value = { ...settings.value, [name]: event.currentTarget.value };
                }}
              />
            </label>
          ))}
        <button
          type="button"
          class="quiet"
          aria-expanded={unfolded.value}
          onClick={() => {
            unfolded.value = !unfolded.value;
          }}
        >
          {w.more} {unfolded.value ? "▴" : "▾"}
        </button>
        {canSteer && <AddConcept />}
        <span class="write-end">
          <small id="write-note">{empty ? w.empty : w.keys}</small>
          <button type="submit" class="primary" disabled={empty || asking.value || failed}>
            {given.value === null ? w.write : w.explain}
          </button>
        </span>
      </div>
      <Refused at={SETTINGS} />
      {refused.value !== null && !NAMED.includes(refused.value.param) && refused.value.param !== null && (
        <p class="refusal" role="alert">
          {refused.value.message}
        </p>
      )}
      {unfolded.value && (
        <div class="given">
          <Checkbox
            checked={given.value !== null}
            onChange={(checked) => {
              given.value = checked ? "" : null;
            }}
          >
            {w.given}
          </Checkbox>
          {given.value !== null && (
            <textarea
              rows={3}
              lang=""
              aria-label={w.givenLabel}
              value={given.value}
              onInput={(event) => {
                given.value = event.currentTarget.value;
              }}
            />
          )}
          <Refused at={["continuation"]} />
        </div>
      )}
      {canSteer && <Steer />}
    </form>
  );
}
