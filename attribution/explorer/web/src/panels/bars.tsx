// Bars and placeholders of the panels. Signs are shown by colour, by pattern and as numbers.

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

/** A stacked bar of shares, each with its own pattern, and its legend. */
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

/** The foot of a panel: the accuracy of its numbers. */
export function Foot({ children }: { children: ComponentChildren }) {
  return <p class="foot">{children}</p>;
}

export function Missing({ children }: { children: ComponentChildren }) {
  return <p class="missing">{children}</p>;
}

/** A placeholder with the progress of a computation. */
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
