// The panel "Inputs": the input tokens that raised or lowered the logits of the selected tokens.

import { formatSpan } from "../pure/address.ts";
import { visible, runAt } from "../pure/characters.ts";
import { largest } from "../pure/colours.ts";
import { signed, small } from "../pure/numbers.ts";
import { specialName } from "../reading.ts";
import { askAgain, held, mode, pointer, reading, selection } from "../store.ts";
import { selectedInputs } from "../tints.ts";
import { words } from "../words/index.ts";
import { Cells, Foot, Missing, Waiting, pointing } from "./bars.tsx";

const SHOWN = 12;

export function Inputs() {
  const w = words.value.inputs;
  const [text, span] = [reading.value, selection.value];
  if (text === null || span === null) return <Missing>{words.value.why.choose}</Missing>;
  if (span[1] <= text.promptLength) return <Missing>{w.prompt}</Missing>;
  const { value: found, waiting, error } = selectedInputs.value;
  if (error !== undefined) return <Missing again={() => askAgain("inputs", formatSpan(span))}>{error}</Missing>;
  if (found === undefined && waiting !== undefined)
    return <Waiting label={w.waiting(waiting.done, waiting.of)} done={waiting.done} of={waiting.of} />;
  if (found === undefined) return <Missing>{mode.value === "live" ? w.notYet : w.notComputed}</Missing>;
  const most = largest(found.attributions);
  const hidden = found.attributions.slice(SHOWN).reduce((sum, value) => sum + value, 0);
  const name = (position: number) => {
    const run = text.runs[runAt(text.runs, position)];
    return run === undefined || run[2] === "" ? specialName(text, position) || "·" : visible(run[2], 28);
  };
  return (
    <>
      <p class="lead">{w.lead}</p>
      <ol class="rows">
        {found.positions.slice(0, SHOWN).map((position, i) => {
          const at = { input: position };
          return (
            <li key={position}>
              <button
                type="button"
                class="row"
                aria-pressed={held.value !== null && "input" in held.value && held.value.input === position}
                {...pointing({ span: [position, position + 1] })}
                onClick={() => {
                  pointer.value = null;
                  held.value =
                    held.value !== null && "input" in held.value && held.value.input === position ? null : at;
                }}
                title={w.later}
              >
                <Cells value={found.attributions[i]!} most={most} text={signed(found.attributions[i]!)}>
                  <code>{name(position)}</code> <small class="number">@{position}</small>
                </Cells>
              </button>
            </li>
          );
        })}
        <li class="row rest">
          <Cells value={hidden + found.rest} most={most} text={signed(hidden + found.rest)}>
            {w.rest(Math.max(0, found.positions.length - SHOWN))}
          </Cells>
        </li>
      </ol>
      <Foot>
        {w.sum(signed(found.value - found.baseline), small(found.completeness_error))}
        {found.nodes !== undefined && found.nodes > 0 && ` ${w.nodes(found.nodes)}`}
        {(found.unconverged ?? 0) > 0 &&
          ` ${found.tokens === 1 ? w.outsideOne : w.outside(found.unconverged!, found.tokens ?? 1)}`}
        {found.unconverged === undefined &&
          found.converged === false &&
          ` ${found.nodes === undefined ? w.outsideSome : w.outsideOne}`}
      </Foot>
    </>
  );
}
