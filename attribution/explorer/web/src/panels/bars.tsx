// Bars whose sign shows three times: by colour, by pattern and as a number.

import type { ComponentChildren } from "preact";

/** A bar of a value on a scale that ends at `most`. */
export function Bar({ value, most }: { value: number; most: number }) {
  const width = most <= 0 ? 0 : Math.min(100, (100 * Math.abs(value)) / most);
  return (
    <span class="track" aria-hidden="true">
      <span class={`bar ${value < 0 ? "down" : "up"}`} style={{ width: `${width}%` }} />
    </span>
  );
}

/** The parts of a whole, side by side, each with a pattern of its own. */
export function Parts({ parts }: { parts: readonly { name: string; kind: string; share: number; text: string }[] }) {
  return (
    <div class="parts">
      <div class="stack" aria-hidden="true">
        {parts.map((part) => (
          <span key={part.kind} class={part.kind} style={{ flexGrow: Math.max(part.share, 0.001) }} />
        ))}
      </div>
      <ul class="key">
        {parts.map((part) => (
          <li key={part.kind}>
            <i class={part.kind} />
            {part.name} <b class="number">{part.text}</b>
          </li>
        ))}
      </ul>
    </div>
  );
}

/** The line at the end of a panel: how exact its numbers are, and how they were made. */
export function Foot({ children }: { children: ComponentChildren }) {
  return <p class="foot">{children}</p>;
}

export function Missing({ children }: { children: ComponentChildren }) {
  return <p class="missing">{children}</p>;
}

/** What stands in a panel while it is computed: a bar, or grey lines of the height that the content will have. */
export function Waiting({ label, done, of }: { label: string; done: number; of: number }) {
  return (
    <div class="waiting">
      <p>
        {label}
        {of > 1 && <progress max={of} value={done} aria-label={label} />}
      </p>
      {[72, 54, 61, 40, 33].map((width) => (
        <span key={width} class="skeleton" style={{ width: `${width}%` }} />
      ))}
    </div>
  );
}
