// The step slider with its buttons: shows the canvas before each step.

import { consideredAt } from "./tints.ts";
import { count, playing, reading, setStep, step } from "./store.ts";
import { words } from "./words/index.ts";

const SPEEDS = [2, 5, 10]; // steps a second

/** An SVG icon, since some fonts lack these symbols. */
function Icon({ shape, filled = false }: { shape: string; filled?: boolean }) {
  return (
    <svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" class={filled ? "filled" : "outlined"}>
      <path d={shape} />
    </svg>
  );
}

export function Slider() {
  const w = words.value.steps;
  const text = reading.value;
  if (text === null || text.commits.length === 0) return null;
  const steps = text.commits.length;
  const at = count.value;
  const whole = step.value === null;
  const label = whole ? w.all(steps) : w.before(text.commits[at]!.step, text.commits.at(-1)!.step);
  const play = () => {
    if (playing.value > 0) playing.value = 0;
    else {
      if (whole) setStep(0);
      playing.value = SPEEDS[1]!;
    }
  };
  return (
    <div class="slider" role="group" aria-label={w.title}>
      <button
        type="button"
        class="icon"
        aria-label={w.back}
        title={w.back}
        disabled={at === 0}
        onClick={() => setStep(at - 1)}
      >
        <Icon shape="M11 3 5 8l6 5z" />
      </button>
      <button
        type="button"
        class="icon"
        aria-label={playing.value > 0 ? w.pause : w.play}
        title={playing.value > 0 ? w.pause : w.play}
        onClick={play}
      >
        <Icon shape={playing.value > 0 ? "M4 3h3v10H4zM9 3h3v10H9z" : "M4 2.500 13 8l-9 5.500z"} filled />
      </button>
      <button
        type="button"
        class="icon"
        aria-label={w.on}
        title={w.on}
        disabled={whole}
        onClick={() => setStep(at + 1)}
      >
        <Icon shape="M5 3l6 5-6 5z" />
      </button>
      <input
        type="range"
        min={0}
        max={steps}
        value={at}
        aria-label={w.title}
        aria-valuetext={label}
        onInput={(event) => {
          playing.value = 0;
          setStep(Number(event.currentTarget.value));
        }}
      />
      <output class="number">{label}</output>
      {playing.value > 0 && (
        <span class="speeds" role="group" aria-label={w.speed}>
          {SPEEDS.map((speed) => (
            <button
              type="button"
              key={speed}
              aria-pressed={playing.value === speed}
              onClick={() => {
                playing.value = speed;
              }}
            >
              {speed}×
            </button>
          ))}
        </span>
      )}
      {!whole && text.source === "document" && consideredAt(text, at) === null && <small>{w.noGhosts}</small>}
    </div>
  );
}
