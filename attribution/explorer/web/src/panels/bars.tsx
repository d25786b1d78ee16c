// Bars and placeholders of the panels. Signs are shown by colour, by pattern and as numbers.

import type { ComponentChildren } from "preact";
import { type Pointer, pointer } from "../store.ts";
import { words } from "../words/index.ts";

/** A bar of a value on a scale that ends at `most`. */
export function Bar({ value, most, sign = value < 0 ? "down" : "up" }: { value: number; most: number; sign?: string }) {
  const width = most <= 0 ? 0 : Math.min(100, (100 * Math.abs(value)) / most);
  return (
    <span class="track" aria-hidden="true">
      <span class={`bar ${sign}`} style={{ width: `${width}%` }} />
    </span>
  );
}

/** The cells of a row: a name, a bar, and the value as text. */
export function Cells(props: {
  children: ComponentChildren;
  value: number;
  most: number;
  text: string;
  sign?: string;
}) {
  return (
    <>
      <span class="name">{props.children}</span>
      <Bar {...props} />
      <span class="number value">{props.text}</span>
    </>
  );
}

/** The handlers of a row that shows its part of the text while it is pointed at or has the focus. */
export function pointing(at: Pointer) {
  const point = () => {
    pointer.value = at;
  };
  const leave = () => {
    pointer.value = null;
  };
  return { onPointerEnter: point, onPointerLeave: leave, onFocus: point, onBlur: leave };
}

/** A button with a sign in place of a word. */
export function Icon(props: { label: string; onClick: () => void; children: ComponentChildren }) {
  return (
    <button type="button" class="icon" aria-label={props.label} onClick={props.onClick}>
      {props.children}
    </button>
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

/** Why a panel has no result. again: asks for work that failed once more. */
export function Missing({ children, again }: { children: ComponentChildren; again?: (() => void) | false }) {
  return (
    <div class="missing">
      <p>{children}</p>
      {again && (
        <button type="button" onClick={again}>
          {words.value.again}
        </button>
      )}
    </div>
  );
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
