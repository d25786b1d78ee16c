// Steering by name: a dial for each concept, in multiples of its measured strength.

import { signal } from "@preact/signals";
import { Checkbox } from "../checkbox.tsx";
import type { Column } from "../pure/address.ts";
import { blockOf } from "../concepts.ts";
import { model } from "../store.ts";
import type { Card } from "../types.ts";
import { Icon } from "../panels/bars.tsx";
import { words } from "../words/index.ts";
import { get } from "./api.ts";
import { type Turn, compareWith, turn, turns } from "./request.ts";
import { Refused } from "./write.tsx";

const searching = signal(false);
const query = signal("");
const found = signal<readonly Card[] | null>(null);
let latest = 0;

async function search(text: string): Promise<void> {
  query.value = text;
  const number = (latest += 1);
  const answer = await get<{ concepts: Card[] }>(`/api/concepts?limit=8&q=${encodeURIComponent(text)}`).catch(() => ({
    concepts: [],
  }));
  if (number === latest) found.value = answer.concepts;
}

export function Steer() {
  const w = words.value.steer;
  if (turns.value.length === 0 && !searching.value) return null;
  return (
    <fieldset class="steer">
      <legend class="offscreen">{w.title}</legend>
      {turns.value.map((one) => (
        <Dial key={one.name} one={one} />
      ))}
      <Refused at={["steering", "random_direction"]} />
      {searching.value && <Search />}
      {turns.value.length > 0 && (
        <p class="switches">
          <span class="quiet-text">{w.compare}</span>
          {(["plain", "random", "prompt"] as readonly Column[]).map((column) => (
            <Checkbox
              key={column}
              checked={compareWith.value.includes(column)}
              onChange={(checked) => {
                compareWith.value = checked
                  ? [...compareWith.value, column]
                  : compareWith.value.filter((one) => one !== column);
              }}
            >
              {w.columns[column]}
            </Checkbox>
          ))}
        </p>
      )}
    </fieldset>
  );
}

/** Opens the search for a concept. */
export function AddConcept() {
  const [known, features] = [model.value?.concepts.known ?? 0, model.value?.features.length ?? 0];
  const { add, addFeature, addEither } = words.value.steer;
  return (
    <button
      type="button"
      class="quiet"
      disabled={model.value === null}
      aria-expanded={searching.value}
      onClick={() => {
        searching.value = !searching.value;
        if (searching.value) void search("");
      }}
    >
      + {features === 0 ? add : known === 0 ? addFeature : addEither}
    </button>
  );
}

function Dial({ one }: { one: Turn }) {
  const w = words.value.steer;
  const size = `${Math.abs(one.dial)}`;
  const says = one.dial > 0 ? w.amplified(size) : one.dial < 0 ? w.suppressed(size) : w.off;
  const set = (dial: number) => {
    turns.value = turns.value.map((other) => (other.name === one.name ? { ...one, dial } : other));
  };
  const measured = (one.dial >= 0 ? one.amplify : one.suppress) !== null;
  return (
    <div class="dial">
      <span class="dial-name">{one.label}</span>
      <input
        type="range"
        min={-2}
        max={2}
        step={0.25}
        value={one.dial}
        list="dial-marks"
        aria-label={w.strength(one.label)}
        aria-valuetext={says}
        title={one.name.startsWith("feature:") ? w.featureUnit : measured ? w.unit : w.noStrength}
        onInput={(event) => set(Number(event.currentTarget.value))}
        onKeyDown={(event) => {
          const change = { "+": 0.25, "-": -0.25 }[event.key];
          if (change !== undefined) set(Math.max(-2, Math.min(2, one.dial + change)));
        }}
      />
      <output class="number">{says}</output>
      <Icon
        label={w.remove(one.label)}
        onClick={() => {
          turns.value = turns.value.filter((other) => other.name !== one.name);
        }}
      >
        ✕
      </Icon>
      <datalist id="dial-marks">
        {[-1, -0.5, 0, 0.5, 1].map((mark) => (
          <option key={mark} value={mark} />
        ))}
      </datalist>
    </div>
  );
}

function Search() {
  const w = words.value.steer;
  const close = () => {
    searching.value = false;
  };
  return (
    <div
      class="search"
      onKeyDown={(event) => {
        if (event.key !== "Escape") return;
        event.stopPropagation();
        close();
      }}
    >
      <input
        type="search"
        aria-label={w.find}
        placeholder={w.find}
        value={query.value}
        ref={(field) => {
          if (field !== null && document.activeElement === document.body) field.focus();
        }}
        onInput={(event) => void search(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key !== "Enter" || event.ctrlKey || event.isComposing) return;
          event.preventDefault(); // it chooses, and does not write
          const first = found.value?.[0];
          if (first !== undefined && first.steer !== null) choose(first);
        }}
      />
      <Icon label={words.value.close} onClick={close}>
        ✕
      </Icon>
      {found.value !== null && found.value.length === 0 && <p class="missing">{w.none}</p>}
      <ul>
        {(found.value ?? []).map((one) => (
          <li key={`${one.head}${one.id}`}>
            <button type="button" disabled={one.steer === null} onClick={() => choose(one)}>
              <b>{one.name}</b>
              <span>
                {one.head?.startsWith("feature:") && `${words.value.card.feature(blockOf(one.head))} · `}
                {one.steer === null ? words.value.card.unmeasured : one.description}
              </span>
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}

function choose(one: Card): void {
  turn(one.steer ?? one.name ?? "", 0.5, one);
  searching.value = false;
}
