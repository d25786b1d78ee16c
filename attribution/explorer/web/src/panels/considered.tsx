// The panel "Considered": the candidates of a position at a step, with their probability as drawn and before suppression,
// penalty and bans.

import { visible } from "../pure/characters.ts";
import { percent, plain, probability } from "../pure/numbers.ts";
import { factsOf } from "../reading.ts";
import { askAgain, mode, openPosition, reading, results, selection } from "../store.ts";
import { ALL_STEPS, consideredAt, lookedAtCommit, pieceOf } from "../tints.ts";
import type { Considered as All, ConsideredStep } from "../types.ts";
import { words } from "../words/index.ts";
import { Bar, Foot, Missing, Waiting } from "./bars.tsx";

export function Considered() {
  const w = words.value.considered;
  const [text, span, commit] = [reading.value, selection.value, lookedAtCommit.value];
  if (text === null || span === null) return <Missing>{words.value.why.choose}</Missing>;
  if (commit === null) return <Missing>{span[1] <= text.promptLength ? w.prompt : w.never}</Missing>;
  const found = consideredAt(text, commit);
  const number = text.commits[commit]!.step;
  const { considered } = results.value;
  // The steps are asked for one by one, or all at once while the slider moves.
  const key = considered[ALL_STEPS]?.error === undefined ? `${number}` : ALL_STEPS;
  const pending = considered[key];
  if (found === null) {
    if (pending?.error !== undefined)
      return <Missing again={() => askAgain("considered", key)}>{pending.error}</Missing>;
    return mode.value === "live" ? <Waiting label={w.waiting} done={0} of={1} /> : <Missing>{w.notComputed}</Missing>;
  }
  const position = openPosition.value ?? span[0];
  return (
    <Place
      found={found.step}
      all={found.all}
      position={position}
      single={span[1] === span[0] + 1 || openPosition.value !== null}
    />
  );
}

function Place({
  found,
  all,
  position,
  single,
}: {
  found: ConsideredStep;
  all: All;
  position: number;
  single: boolean;
}) {
  const w = words.value.considered;
  const text = reading.value!;
  const place = found.open.find(([at]) => at === position);
  const { commitOf, tokens } = factsOf(text);
  const own = text.commits[commitOf[position] ?? -1];
  const chosen = own === undefined ? undefined : own.token_ids[own.positions.indexOf(position)];
  if (place === undefined) return <Missing>{w.notOpen(position, found.step)}</Missing>;
  const [, candidates, entropy, confidence, temperature] = place;
  const most = Math.max(...candidates.map(([, drawn, raw]) => Math.max(drawn, raw)), 1e-9);
  const rank = found.order.indexOf(position);
  return (
    <>
      <p class="lead">
        {w.lead(position, found.step)}
        {!single && ` ${w.firstOnly}`}
      </p>
      <table class="candidates">
        <thead>
          <tr>
            <th scope="col">{w.token}</th>
            <th scope="col" aria-hidden="true" />
            <th scope="col" class="number">
              {w.drawn}
            </th>
            <th scope="col" class="number">
              {w.raw}
            </th>
          </tr>
        </thead>
        <tbody>
          {candidates.map(([token, drawn, raw]) => (
            <tr key={token} class={token === chosen ? "chosen" : ""}>
              <th scope="row">
                <code>{visible(pieceOf(all, token), 24)}</code>
                {token === chosen && <small> ✓ {w.chosen}</small>}
              </th>
              <td class="meter">
                <Bar value={drawn} most={most} />
              </td>
              <td class="number">{probability(drawn)}</td>
              <td class="number">{probability(raw)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <dl class="facts">
        <dt>{w.entropy}</dt>
        <dd class="number">{w.bits(plain(entropy))}</dd>
        <dt>{w.confidence}</dt>
        <dd class="number">{percent(confidence)}</dd>
        {rank >= 0 && (
          <>
            <dt>{w.order}</dt>
            <dd class="number">{w.rank(rank + 1, found.order.length)}</dd>
          </>
        )}
        {temperature !== null && (
          <>
            <dt>{w.temperature}</dt>
            <dd class="number">{plain(temperature)}</dd>
          </>
        )}
        {own !== undefined && (
          <>
            <dt>{w.filled}</dt>
            <dd>{w.filledWith(own.step, visible(textAt(position, chosen, all, tokens.has(position)), 24))}</dd>
          </>
        )}
      </dl>
      <Foot>
        {all.compared > 0 ? w.agrees(all.agreeing, all.compared) : w.notCompared}
        {found.agrees === false && ` ${w.disagrees}`}
      </Foot>
    </>
  );
}

function textAt(position: number, token: number | undefined, all: All, written: boolean): string {
  const piece = written ? reading.value!.document?.pieces[position] : undefined;
  return token !== undefined && all.pieces?.[`${token}`] !== undefined ? pieceOf(all, token) : (piece ?? `#${token}`);
}
