// A button with a popover, which the browser closes on Escape and on a click outside.

import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";
import { place } from "./dom.ts";

export function Menu({
  id,
  label,
  name,
  children,
}: {
  id: string;
  label: ComponentChildren;
  name?: string;
  children: ComponentChildren;
}) {
  const button = useRef<HTMLButtonElement>(null);
  return (
    <>
      <button
        ref={button}
        type="button"
        class="menu-button"
        popovertarget={id}
        aria-label={name}
        aria-haspopup="dialog"
      >
        {label}
      </button>
      <div
        id={id}
        popover="auto"
        class="menu"
        tabIndex={0} // where it is cut off, the arrow keys scroll it
        onToggle={(event) => {
          if (event.newState === "open" && button.current !== null) place(event.currentTarget, button.current);
        }}
      >
        {children}
      </div>
    </>
  );
}

export function closeMenu(id: string): void {
  document.getElementById(id)?.hidePopover?.();
}
