// The header: the model, cases, sharing, language, colours and help.

import { CaseMenu } from "./cases.tsx";
import { HelpButton } from "./help.tsx";
import { ShareMenu } from "./share.tsx";
import { mode, model, reading } from "./store.ts";
import { theme } from "./theme.ts";
import { language, setLanguage, words } from "./words/index.ts";

export function Header() {
  const w = words.value.header;
  const origin = model.value ?? reading.value?.document?.trace.model;
  const next = theme.value === "auto" ? "dark" : theme.value === "dark" ? "light" : "auto";
  return (
    <header class="top">
      <span class="wordmark">
        steerling <span>explore</span>
      </span>
      {origin !== undefined && (
        <span class="origin">
          {origin.name} <code>{origin.fingerprint.slice(0, 8)}</code>
        </span>
      )}
      <nav aria-label={w.title}>
        {mode.value === "live" && <CaseMenu />}
        {mode.value === "live" && <ShareMenu />}
        <span class="segments" role="group" aria-label={w.language}>
          <button type="button" lang="en" aria-pressed={language.value === "en"} onClick={() => setLanguage("en")}>
            EN
          </button>
          <button
            type="button"
            lang="ko"
            aria-label="한국어"
            aria-pressed={language.value === "ko"}
            onClick={() => setLanguage("ko")}
          >
            한
          </button>
        </span>
        <button
          type="button"
          class="icon"
          aria-label={`${w.theme}: ${w.themes[theme.value]}`}
          title={`${w.theme}: ${w.themes[theme.value]}`}
          onClick={() => {
            theme.value = next;
          }}
        >
          {theme.value === "dark" ? "●" : theme.value === "light" ? "○" : "◐"}
        </button>
        <HelpButton />
      </nav>
    </header>
  );
}
