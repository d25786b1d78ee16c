// The text. It updates its spans directly and only where they change: for 2,000 tokens, a virtual tree would take longer
// than a frame at each step of the slider.

import type { Tint } from "./pure/colours.ts";
import type { Reading } from "./reading.ts";
import type { Run } from "./types.ts";

/** The appearance of a run. Each field is written to the DOM only if it differs from the previous one. */
export interface Look {
  readonly text: string;
  readonly classes: string;
  readonly tint: Tint | null;
  readonly known: number; // shares of the line below, in percent: known, then known and discovered; -1 for no line
  readonly discovered: number;
  readonly thickness: number; // of a ghost's underline, in pixels
  readonly label: string;
  readonly pressed: boolean | null; // null where it cannot be chosen
}

interface Unit {
  readonly element: HTMLElement;
  look: Look | null;
  run: Run;
}

export class Canvas {
  readonly root: HTMLElement;
  private units: Unit[] = [];
  private runs: readonly Run[] = [];
  private active = 0; // the index of the unit that Tab reaches
  /** DOM writes since the start; tests limit this number, which does not depend on the machine. */
  writes = 0;

  constructor(root: HTMLElement) {
    this.root = root;
  }

  /** Creates the spans of a text, and reuses those of runs with the same start. */
  arrange(text: Reading): void {
    if (this.runs === text.runs) return;
    const old = new Map(this.units.map((unit) => [unit.run[0], unit]));
    this.units = text.runs.map((run) => {
      const unit = old.get(run[0]);
      if (unit === undefined) return { element: this.make(), look: null, run };
      old.delete(run[0]);
      unit.run = run;
      return unit;
    });
    for (const { element } of old.values()) element.remove();
    let before: ChildNode | null = this.root.firstChild;
    this.units.forEach(({ element }, index) => {
      element.dataset.index = `${index}`;
      if (element === before) before = before.nextSibling;
      else {
        this.root.insertBefore(element, before);
        this.writes += 1;
      }
    });
    this.runs = text.runs;
    this.setActive(Math.min(this.active, this.units.length - 1), false);
  }

  private make(): HTMLElement {
    const element = document.createElement("span");
    element.setAttribute("role", "button");
    element.tabIndex = -1;
    return element;
  }

  draw(lookOf: (run: Run, index: number) => Look): void {
    this.units.forEach((unit, index) => this.apply(unit, lookOf(unit.run, index)));
  }

  private apply(unit: Unit, look: Look): void {
    const { element, look: old } = unit;
    unit.look = look;
    if (old?.text !== look.text)
      this.write(() => {
        element.textContent = look.text;
      });
    if (old?.classes !== look.classes)
      this.write(() => {
        element.className = look.classes;
      });
    if (old?.label !== look.label) this.write(() => element.setAttribute("aria-label", look.label));
    if (old?.tint?.alpha !== look.tint?.alpha) this.property(element, "--tint", look.tint?.alpha.toFixed(3));
    if (old?.known !== look.known) this.property(element, "--known", look.known < 0 ? undefined : `${look.known}%`);
    if (old?.discovered !== look.discovered) {
      this.property(element, "--discovered", look.discovered < 0 ? undefined : `${look.discovered}%`);
    }
    if (old?.thickness !== look.thickness) {
      this.property(element, "--thickness", look.thickness === 0 ? undefined : `${look.thickness}px`);
    }
    if (old?.pressed !== look.pressed) {
      this.write(() =>
        look.pressed === null
          ? element.removeAttribute("aria-pressed")
          : element.setAttribute("aria-pressed", `${look.pressed}`),
      );
    }
  }

  private write(change: () => void): void {
    change();
    this.writes += 1;
  }

  // The content security policy forbids style attributes, but not the object model.
  private property(element: HTMLElement, name: string, value: string | undefined): void {
    this.write(() =>
      value === undefined ? element.style.removeProperty(name) : element.style.setProperty(name, value),
    );
  }

  /** The index of the unit that is the target of an event. */
  indexOf(target: EventTarget | null): number | null {
    const element = target instanceof Element ? target.closest<HTMLElement>("[data-index]") : null;
    return element === null || !this.root.contains(element) ? null : Number(element.dataset.index);
  }

  runOf(index: number): Run | undefined {
    return this.units[index]?.run;
  }

  get activeIndex(): number {
    return this.active;
  }

  get size(): number {
    return this.units.length;
  }

  /** Makes a unit the one in the tab order (roving tabindex). */
  setActive(index: number, focus = true): void {
    const next = this.units[index];
    if (next === undefined) return;
    const now = this.units[this.active];
    if (now !== undefined) now.element.tabIndex = -1;
    this.active = index;
    next.element.tabIndex = 0;
    if (focus) next.element.focus();
  }

  /** The horizontally nearest unit of the line above or below; the same unit if there is no such line. */
  vertical(index: number, direction: 1 | -1): number {
    const from = this.units[index]?.element.getBoundingClientRect();
    if (from === undefined) return index;
    const middle = (from.left + from.right) / 2;
    let best = index;
    let line: number | null = null;
    let nearest = Infinity;
    for (let i = index + direction; i >= 0 && i < this.units.length; i += direction) {
      const box = this.units[i]!.element.getClientRects()[0] ?? this.units[i]!.element.getBoundingClientRect();
      const apart = direction * (box.top - from.top);
      if (apart < 4) continue; // the same line
      if (line !== null && Math.abs(box.top - line) > 4) break; // the line behind it
      line = box.top;
      const distance = Math.abs((box.left + box.right) / 2 - middle);
      if (distance < nearest) [nearest, best] = [distance, i];
    }
    return best;
  }

  /** Scrolls a unit into view, above a sheet of height `covered` at the bottom of the window. */
  reveal(position: number, covered: number): void {
    const unit = this.units.find(({ run }) => run[0] <= position && position < run[1]);
    const box = unit?.element.getBoundingClientRect();
    if (box === undefined) return;
    const bottom = window.innerHeight - covered;
    if (box.bottom > bottom - 8 || box.top < 56) window.scrollBy({ top: box.top - bottom / 2, behavior: "instant" });
  }
}
