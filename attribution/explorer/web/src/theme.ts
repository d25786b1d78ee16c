// The colour scheme: light, dark, or the system's.

import { effect, signal } from "@preact/signals";
import { remember, remembered } from "./dom.ts";

export type Theme = "auto" | "light" | "dark";
const stored = remembered("theme");
export const theme = signal<Theme>(stored === "light" || stored === "dark" ? stored : "auto");

effect(() => {
  const root = document.documentElement;
  if (theme.value === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme.value;
  remember("theme", theme.value);
});
