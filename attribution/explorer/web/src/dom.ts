// Helpers for browser features that need a fallback, mostly in the sandboxed frame of a notebook.

/** Positions a fixed element next to its anchor and inside of the window. */
export function place(element: HTMLElement, anchor: Element): void {
  const from = anchor.getBoundingClientRect();
  const own = element.getBoundingClientRect();
  const left = Math.max(8, Math.min(from.right - own.width, document.documentElement.clientWidth - own.width - 8));
  const below = from.bottom + 6;
  const top = below + own.height <= window.innerHeight - 8 ? below : Math.max(8, from.top - own.height - 6);
  element.style.left = `${left}px`;
  element.style.top = `${top}px`;
}

/** Copies a text to the clipboard, without the clipboard API by selecting a hidden field. Returns whether it worked. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "offscreen";
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

/** A stored preference. Access to storage throws in sandboxed frames, where preferences are not stored. */
export function remembered(key: string): string | null {
  try {
    return localStorage.getItem(`steerling.${key}`);
  } catch {
    return null;
  }
}

export function remember(key: string, value: string): void {
  try {
    localStorage.setItem(`steerling.${key}`, value);
  } catch {
    // without storage the preference lasts until the page is closed
  }
}

export function download(name: string, blob: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
