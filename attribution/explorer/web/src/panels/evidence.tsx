// The panel "Training data": hits above the threshold of each score, or "nothing close" with threshold and best value.

import { formatSpan } from "../pure/address.ts";
import { plain } from "../pure/numbers.ts";
import { sameSpan } from "../pure/selection.ts";
import type { Reading } from "../reading.ts";
import { type Result, askAgain, held, mode, model, reading, results, selection } from "../store.ts";
import type { Evidence as Found, Hit, Span } from "../types.ts";
import { words } from "../words/index.ts";
import { Foot, Missing, Waiting, pointing } from "./bars.tsx";

/** Set by live mode: influence on request, building an index, and the document around a hit. */
export const additions: {
  influence?: () => preact.JSX.Element | null;
  index?: () => preact.JSX.Element | null;
  passage?: (hit: Hit) => void;
} = {};

const COMMANDS = "steerling prepare\nsteerling index corpus index\nsteerling explore --index index --corpus corpus";
const SHOWN = 4; // hits of a score

function evidenceOf(text: Reading, span: Span): Result<Found> {
  const own = results.value.evidence[formatSpan(span)];
  const chunk = text.document?.chunks.find(({ start, end }) => sameSpan([start, end], span));
  return own?.value === undefined && chunk?.evidence ? { value: chunk.evidence } : (own ?? {});
}

export function Evidence() {
  const w = words.value.evidence;
  const [text, span] = [reading.value, selection.value];
  if (text === null || span === null) return <Missing>{words.value.why.choose}</Missing>;
  const { value, waiting, error } = evidenceOf(text, span);
  if (error !== undefined) return <Missing again={() => askAgain("evidence", formatSpan(span))}>{error}</Missing>;
  if (value === undefined && mode.value === "live" && text.source === "server") {
    if (model.value !== null && model.value.index === null) return <NoIndex />;
    return <Waiting label={w.waiting} done={waiting?.done ?? 0} of={waiting?.of ?? 1} />;
  }
  if (value === undefined) return <Missing>{mode.value === "live" ? w.notOfCase : w.notComputed}</Missing>;
  const influence = results.value.influence[formatSpan(span)];
  return (
    <>
      <p class="lead">{w.lead}</p>
      <Scores found={value} />
      {influence?.value !== undefined && <Scores found={influence.value} />}
      {influence?.value === undefined && additions.influence && <additions.influence />}
      {additions.index && <additions.index />}
      <Foot>{w.foot}</Foot>
    </>
  );
}

function Scores({ found }: { found: Found }) {
  const w = words.value.evidence;
  const scores = Object.keys(found.thresholds);
  return (
    <>
      {scores.map((score) => {
        const hits = found.hits.filter((hit) => hit.score === score);
        const [title, sentence] = w.says[score] ?? [score, ""];
        return (
          <section key={score}>
            <h3 title={sentence}>{title}</h3>
            {hits.length === 0 ? (
              <p class="nothing">
                <b>{w.nothing}</b> {w.threshold(amount(score, found.thresholds[score]!))}
                {found.best?.[score] !== undefined && ` ${w.best(amount(score, found.best[score]))}`}
              </p>
            ) : (
              <ol class="hits">
                {hits.slice(0, SHOWN).map((hit, i) => (
                  <OneHit key={i} hit={hit} />
                ))}
              </ol>
            )}
            {hits.length > 0 && (
              <p class="quiet-text">
                {sentence} {w.threshold(amount(score, found.thresholds[score]!))}
              </p>
            )}
          </section>
        );
      })}
    </>
  );
}

function amount(score: string, value: number): string {
  return score === "verbatim" ? words.value.evidence.tokens(Math.round(value)) : plain(value);
}

function OneHit({ hit }: { hit: Hit }) {
  const w = words.value.evidence;
  const at = { span: hit.query };
  const isHeld = held.value !== null && "span" in held.value && sameSpan(held.value.span, hit.query);
  return (
    <li>
      <button
        type="button"
        class="hit"
        aria-pressed={isHeld}
        {...pointing(at)}
        onClick={() => {
          held.value = isHeld ? null : at;
        }}
      >
        <q>{hit.text.trim()}</q>
        <span class="source">
          <b>{hit.name}</b> · {hit.source} · <span class="number">{amount(hit.score, hit.value)}</span>
          {hit.occurrences !== null && ` · ${w.occurrences(hit.occurrences)}`}
          {hit.license && ` · ${hit.license}`}
        </span>
      </button>
      {additions.passage !== undefined && (
        <button type="button" class="quiet" onClick={() => additions.passage!(hit)}>
          {w.inDocument}
        </button>
      )}
    </li>
  );
}

function NoIndex() {
  const w = words.value.evidence;
  return (
    <div class="missing">
      <p>{w.noIndex}</p>
      <pre>
        <code>{COMMANDS}</code>
      </pre>
      {additions.index && <additions.index />}
    </div>
  );
}
