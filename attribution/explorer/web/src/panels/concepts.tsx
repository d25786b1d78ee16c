// The panel "Concepts": named concepts by group, discovered ones folded, and a row for epsilon or the constant.

import { signal } from "@preact/signals";
import { Checkbox } from "../checkbox.tsx";
import {
  type ConceptRows,
  type PartRows,
  type Row,
  activeRows,
  blockOf,
  cardOf,
  conceptRows,
  groupOf,
  nameOf,
  partRows,
} from "../concepts.ts";
import { largest } from "../pure/colours.ts";
import { percent, plain, signed, signedPercent, small } from "../pure/numbers.ts";
import { type Reading } from "../reading.ts";
import { absolute, card, held, reading, selection, unexplained } from "../store.ts";
import type { Kind } from "../types.ts";
import { words } from "../words/index.ts";
import { actions, openCard } from "./card.tsx";
import { Cells, Foot, Missing, Parts, Waiting, pointing } from "./bars.tsx";

const filter = signal("");
const unfolded = signal(false);
const SHOWN = 8; // features that are listed as parts of logits
const FOLDED = 3; // discovered concepts shown before they are unfolded: there are many, and few have names
const GROUPS = ["form", "topic", "syntax", ""] as const;

export function Concepts() {
  const w = words.value.concepts;
  const [text, span] = [reading.value, selection.value];
  if (text === null) return <Missing>{words.value.why.choose}</Missing>;
  if (text.document === null) {
    const error = text.error ?? unexplained.value[text.id];
    if (error === undefined) return <Waiting label={w.whenDone} done={0} of={1} />;
    // A text that could not be written is asked for again above it.
    return <Missing again={text.error === null && (() => actions.explain?.(text.id))}>{error}</Missing>;
  }
  const { concepts, features, activations } = text.document;
  if (!concepts && !features && !activations) return <Missing>{w.none}</Missing>;
  const rows = conceptRows(text, span);
  const parts = partRows(text, span);
  return (
    <>
      {rows !== null ? (
        <Rows text={text} rows={rows} whole={span === null} />
      ) : parts === null && (concepts || features) ? (
        <Missing>{w.prompt}</Missing>
      ) : (
        <p class="switches">
          <Filter />
        </p>
      )}
      {parts !== null && <Parted text={text} parts={parts} />}
      {activeRows(text, span).map((active, i) => (
        <Active key={active.head} text={text} first={i === 0} {...active} />
      ))}
    </>
  );
}

const looked = () => filter.value.trim().toLowerCase();

/** Whether a row has the filter's words in its name or in the words that it promotes. */
function fits(text: Reading, { kind, id }: Row): boolean {
  return `${nameOf(text, kind, id)} ${promotedBy(text, kind, id)}`.toLowerCase().includes(looked());
}

/** The words that a feature promotes; the names of concepts say enough. */
function promotedBy(text: Reading, kind: Kind, id: number): string {
  if (kind === "known" || kind === "discovered") return "";
  const pieces = cardOf(text, kind, id)?.promotes ?? [];
  return pieces
    .slice(0, 4)
    .map((piece) => piece.trim())
    .join(" ");
}

/** Features as parts of logits. */
function Parted({ text, parts }: { text: Reading; parts: PartRows }) {
  const w = words.value.features;
  const { of, head, rows, other, bias, residual, tokens } = parts;
  const all = looked() === "";
  const shown = all ? rows.slice(0, SHOWN) : rows.filter((row) => fits(text, row));
  const rest = [
    [w.other, rows.slice(SHOWN).reduce((sum, { value }) => sum + value, other)],
    [w.bias, bias],
    ...(residual === null ? [] : [[w.residual, residual] as const]),
  ] as const;
  const most = largest([...rows.map(({ value }) => value), ...rest.map(([, value]) => value)]);
  return (
    <section>
      <h3>{w.title(blockOf(head))}</h3>
      <p class="lead">{w.parts(tokens, of.reference === "raw")}</p>
      <List text={text} rows={shown} most={most} format={signed} />
      {all && (
        <ol class="rows">
          {rest.map(([name, value]) => (
            <li key={name} class="row rest">
              <Cells value={value} most={most} text={signed(value)}>
                {name}
              </Cells>
            </li>
          ))}
        </ol>
      )}
      <Foot>
        {residual !== null && `${w.frozen} `}
        {(tokens === 1 ? words.value.concepts.error : words.value.concepts.chunkError)(small(of.largest_error))}
      </Foot>
    </section>
  );
}

/** Features as activations, which are no parts of logits. */
function Active(props: { text: Reading; first: boolean; head: Kind; name: string; rows: readonly Row[] }) {
  const { text, first, head, name, rows } = props;
  const w = words.value.features;
  const most = largest(rows.map(({ value }) => value));
  return (
    <section>
      <h3>
        {w.title(blockOf(head))} · {name}
      </h3>
      {(first || rows.length === 0) && <p class="lead">{rows.length === 0 ? w.quiet : w.active}</p>}
      <List text={text} rows={rows.filter((row) => fits(text, row))} most={most} format={plain} sign="active" />
    </section>
  );
}

function Filter() {
  const w = words.value.concepts;
  return (
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
  );
}

function Rows({ text, rows, whole }: { text: Reading; rows: ConceptRows; whole: boolean }) {
  const w = words.value.concepts;
  const shares = absolute.value ? rows.absolute : rows.net;
  const all = looked() === "";
  const known = rows.known.filter((row) => fits(text, row));
  const discovered = rows.discovered.filter((row) => fits(text, row));
  const format = rows.unit === "share" ? signedPercent : signed;
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
        <Cells value={rows.epsilon} most={most} text={format(rows.epsilon)}>
          <i class="epsilon" />
          {rest}
        </Cells>
      </li>
    </ol>
  );
  const open = unfolded.value || !all;
  const other = (name: string, value: number | null) =>
    value !== null &&
    all && (
      <ol class="rows">
        <li class="row rest">
          <Cells value={value} most={most} text={format(value)}>
            {name}
          </Cells>
        </li>
      </ol>
    );
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
        <Filter />
      </p>
      {!text.document!.strict && remainder}
      {grouped.map(({ group, rows: own }) => (
        <section key={group}>
          <h3>{group === "form" ? w.form : group === "topic" ? w.topic : group === "syntax" ? w.syntax : w.named}</h3>
          <List text={text} rows={own} most={most} format={format} />
        </section>
      ))}
      {other(w.otherKnown, rows.otherKnown)}
      <section>
        <h3>{w.discoveredTitle}</h3>
        <List text={text} rows={open ? discovered : discovered.slice(0, FOLDED)} most={most} format={format} />
        {other(w.otherDiscovered, rows.otherDiscovered)}
        {discovered.length > FOLDED && all && (
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

function List(props: {
  text: Reading;
  rows: readonly Row[];
  most: number;
  format: (value: number) => string;
  sign?: string;
}) {
  const { text, rows, most, format, sign } = props;
  return (
    <ol class="rows">
      {rows.map((row) => {
        const { kind, id } = row;
        const isHeld = held.value !== null && "id" in held.value && held.value.id === id && held.value.kind === kind;
        const [name, promoted] = [nameOf(text, kind, id), promotedBy(text, kind, id)];
        return (
          <li key={`${kind}${id}`} class="with-card">
            <button
              type="button"
              class="row"
              aria-pressed={isHeld}
              title={`${name} ${promoted}\n${words.value.concepts.tint}`}
              {...pointing({ kind, id })}
              onClick={() => {
                held.value = isHeld ? null : { kind, id };
              }}
            >
              <Cells value={row.value} most={most} text={format(row.value)} {...(sign && { sign })}>
                {name} {promoted !== "" && <small>{promoted}</small>}
              </Cells>
            </button>
            <button
              type="button"
              class="icon info"
              aria-label={words.value.concepts.about(name)}
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
