// The panel "Concepts": named concepts by group, discovered ones folded, and a row for epsilon or the constant.

import { signal } from "@preact/signals";
import { Checkbox } from "../checkbox.tsx";
import { type ConceptRows, type Row, conceptRows, groupOf, nameOf } from "../concepts.ts";
import { largest } from "../pure/colours.ts";
import { percent, signed, signedPercent, small } from "../pure/numbers.ts";
import { type Reading } from "../reading.ts";
import { absolute, card, held, pointer, reading, selection } from "../store.ts";
import { words } from "../words/index.ts";
import { openCard } from "./card.tsx";
import { Bar, Foot, Missing, Parts, Waiting } from "./bars.tsx";

const filter = signal("");
const unfolded = signal(false);
const FOLDED = 3; // discovered concepts shown before they are unfolded: there are many, and few have names
const GROUPS = ["form", "topic", "syntax", ""] as const;

export function Concepts() {
  const w = words.value.concepts;
  const [text, span] = [reading.value, selection.value];
  if (text === null) return <Missing>{words.value.why.choose}</Missing>;
  if (text.document === null)
    return text.state === "failed" ? <Missing>{text.error}</Missing> : <Waiting label={w.whenDone} done={0} of={1} />;
  if (!text.document.concepts) return <Missing>{w.none}</Missing>;
  const rows = conceptRows(text, span);
  if (rows === null) return <Missing>{w.prompt}</Missing>;
  return <Rows text={text} rows={rows} whole={span === null} />;
}

function Rows({ text, rows, whole }: { text: Reading; rows: ConceptRows; whole: boolean }) {
  const w = words.value.concepts;
  const shares = absolute.value ? rows.absolute : rows.net;
  const looked = filter.value.trim().toLowerCase();
  const fits = (row: Row) => looked === "" || nameOf(text, row.kind, row.id).toLowerCase().includes(looked);
  const known = rows.known.filter(fits);
  const discovered = rows.discovered.filter(fits);
  const most = largest([...rows.known, ...rows.discovered].map((row) => row.value).concat(rows.epsilon ?? 0));
  const rest = text.document!.strict ? w.constant : w.epsilon;
  const grouped = GROUPS.map((group) => ({
    group,
    rows: known.filter(
      (row) => (["form", "topic", "syntax"].includes(groupOf(text, row.id)) ? groupOf(text, row.id) : "") === group,
    ),
  })).filter((one) => one.rows.length > 0);
  // Epsilon comes first, so that it is never below the fold. The constant of a strict model is the same at every position
  // and says nothing about this text, so it comes last.
  const remainder = rows.epsilon !== null && (
    <ol class="rows">
      <li class="row rest" title={text.document!.strict ? w.constantSays : w.epsilonSays}>
        <span class="name">
          <i class="epsilon" />
          {rest}
        </span>
        <Bar value={rows.epsilon} most={most} />
        <Value value={rows.epsilon} unit={rows.unit} />
      </li>
    </ol>
  );
  const open = unfolded.value || looked !== "";
  return (
    <>
      <p class="lead">{whole ? w.leadWhole : rows.unit === "share" ? w.leadShare : w.leadLogits(rows.tokens)}</p>
      {shares !== null && (
        <Parts
          parts={[
            { name: w.known, kind: "known", share: shares.known, text: percent(shares.known) },
            { name: w.discovered, kind: "discovered", share: shares.discovered, text: percent(shares.discovered) },
            ...(rows.epsilon === null
              ? []
              : [{ name: rest, kind: "epsilon", share: shares.epsilon, text: percent(shares.epsilon) }]),
          ]}
        />
      )}
      <p class="switches">
        <Checkbox
          title={absolute.value ? w.absoluteSays : w.netSays}
          checked={absolute.value}
          onChange={(checked) => {
            absolute.value = checked;
          }}
        >
          {w.absolute}
        </Checkbox>
        <input
          type="search"
          id="concept-filter"
          class="filter"
          placeholder={w.filter}
          aria-label={w.filter}
          value={filter.value}
          onInput={(event) => {
            filter.value = event.currentTarget.value;
          }}
        />
      </p>
      {!text.document!.strict && remainder}
      {grouped.map(({ group, rows: own }) => (
        <section key={group}>
          <h3>{group === "form" ? w.form : group === "topic" ? w.topic : group === "syntax" ? w.syntax : w.named}</h3>
          <List text={text} rows={own} most={most} unit={rows.unit} />
        </section>
      ))}
      {rows.otherKnown !== null && looked === "" && (
        <ol class="rows">
          <li class="row rest">
            <span class="name">{w.otherKnown}</span>
            <Bar value={rows.otherKnown} most={most} />
            <Value value={rows.otherKnown} unit={rows.unit} />
          </li>
        </ol>
      )}
      <section>
        <h3>{w.discoveredTitle}</h3>
        <List text={text} rows={open ? discovered : discovered.slice(0, FOLDED)} most={most} unit={rows.unit} />
        {rows.otherDiscovered !== null && looked === "" && (
          <ol class="rows">
            <li class="row rest">
              <span class="name">{w.otherDiscovered}</span>
              <Bar value={rows.otherDiscovered} most={most} />
              <Value value={rows.otherDiscovered} unit={rows.unit} />
            </li>
          </ol>
        )}
        {discovered.length > FOLDED && looked === "" && (
          <button
            type="button"
            class="quiet"
            aria-expanded={open}
            onClick={() => {
              unfolded.value = !unfolded.value;
            }}
          >
            {open ? w.fewer : w.more(discovered.length - FOLDED)}
          </button>
        )}
      </section>
      {text.document!.strict && remainder}
      {known.length + discovered.length === 0 && <Missing>{w.noMatch}</Missing>}
      <Foot>
        {absolute.value ? w.absoluteSays : w.netSays}{" "}
        {rows.unit === "logits" ? w.error(small(rows.error)) : w.chunkError(small(rows.error))}
      </Foot>
    </>
  );
}

function Value({ value, unit }: { value: number; unit: "share" | "logits" }) {
  return <span class="number value">{unit === "share" ? signedPercent(value) : signed(value)}</span>;
}

function List({
  text,
  rows,
  most,
  unit,
}: {
  text: Reading;
  rows: readonly Row[];
  most: number;
  unit: "share" | "logits";
}) {
  return (
    <ol class="rows">
      {rows.map((row) => {
        const { kind, id } = row;
        const isHeld = held.value !== null && "id" in held.value && held.value.id === id && held.value.kind === kind;
        const point = () => {
          pointer.value = { kind, id };
        };
        const leave = () => {
          pointer.value = null;
        };
        return (
          <li key={`${kind}${id}`} class="with-card">
            <button
              type="button"
              class="row"
              aria-pressed={isHeld}
              title={`${nameOf(text, kind, id)}\n${words.value.concepts.tint}`}
              onPointerEnter={point}
              onPointerLeave={leave}
              onFocus={point}
              onBlur={leave}
              onClick={() => {
                held.value = isHeld ? null : { kind, id };
              }}
            >
              <span class="name">{nameOf(text, kind, id)}</span>
              <Bar value={row.value} most={most} />
              <Value value={row.value} unit={unit} />
            </button>
            <button
              type="button"
              class="icon info"
              aria-label={words.value.concepts.about(nameOf(text, kind, id))}
              aria-expanded={card.value?.kind === kind && card.value.id === id}
              onClick={(event) => openCard(kind, id, event.currentTarget)}
            >
              i
            </button>
          </li>
        );
      })}
    </ol>
  );
}
