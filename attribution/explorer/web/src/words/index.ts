// The words of the page: one type for all languages, so that a missing one does not compile.

import { computed, effect, signal } from "@preact/signals";
import { remember, remembered } from "../dom.ts";
import { en } from "./en.ts";
import { ko } from "./ko.ts";

export type Language = "en" | "ko";
const ALL = { en, ko };

function first(): Language {
  const stored = remembered("language");
  if (stored === "en" || stored === "ko") return stored;
  return navigator.language.toLowerCase().startsWith("ko") ? "ko" : "en";
}

export const language = signal<Language>(first());
export const words = computed(() => ALL[language.value]);

export function setLanguage(next: Language): void {
  language.value = next;
  remember("language", next);
}

effect(() => {
  document.documentElement.lang = language.value;
});
