// The page: a header, one sentence, the text on the left and the answers on the right.

import { signal } from "@preact/signals";
import { Checkbox } from "./checkbox.tsx";
import { copy } from "./dom.ts";
import { Header } from "./header.tsx";
import { CompareView } from "./compare.tsx";
import { ConceptCard } from "./panels/card.tsx";
import { textOf } from "./pure/characters.ts";
import { Slider } from "./slider.tsx";
import { comparing, enlarged, grain, mode, model, reading, shownCase, strip } from "./store.ts";
import { Legend, TextView } from "./textview.tsx";
import { Why } from "./why.tsx";
import { language, words } from "./words/index.ts";

/** Components of live mode; absent in a file. */
export const live: {
  write?: () => preact.JSX.Element | null;
  status?: () => preact.JSX.Element | null;
  state?: () => preact.JSX.Element | null;
  dialogs?: () => preact.JSX.Element | null;
} = {};

/** In one column the text comes first, and the form below it. */
export const narrow = signal(false);
const column = matchMedia("(max-width: 44rem)");
column.addEventListener("change", () => {
  narrow.value = column.matches;
});
narrow.value = column.matches;

export function App() {
  const w = words.value;
  const text = reading.value;
  return (
    <>
      <a class="skip" href="#text" onClick={jump("text")}>
        {w.skip.text}
      </a>
      <a class="skip" href="#why" onClick={jump("why")}>
        {w.skip.why}
      </a>
      <Header />
      {live.status && <live.status />}
      <main class={enlarged.value ? "wide-why" : undefined}>
        <div class="left">
          <Intro />
          {!narrow.value && live.write && <live.write />}
          <section class="paper" aria-label={w.text.title}>
            {comparing.value && <CompareView />}
            {text === null ? (
              <p class="missing" id="text" tabIndex={-1}>
                {w.text.empty}
              </p>
            ) : (
              <TextView key="text" />
            )}
            {live.state && <live.state />}
            <Slider />
            <div class="under">
              <Legend />
              <p class="switches">
                <span role="group" aria-label={w.text.grain} class="segments">
                  {(["chunk", "word", "token"] as const).map((name) => (
                    <button
                      type="button"
                      key={name}
                      aria-pressed={grain.value === name}
                      onClick={() => {
                        grain.value = name;
                      }}
                    >
                      {w.text.grains[name]}
                    </button>
                  ))}
                </span>
                {text !== null && text.length > 0 && (
                  <button type="button" class="quiet" onClick={() => void copy(textOf(text.runs, [0, text.length]))}>
                    {w.text.copy}
                  </button>
                )}
                {text?.document?.concepts && (
                  <Checkbox
                    title={w.text.stripSays}
                    checked={strip.value}
                    onChange={(checked) => {
                      strip.value = checked;
                    }}
                  >
                    {w.text.strip}
                  </Checkbox>
                )}
              </p>
            </div>
          </section>
          {narrow.value && live.write && <live.write />}
          {mode.value === "file" && <About />}
        </div>
        <Why />
      </main>
      <ConceptCard />
      {live.dialogs && <live.dialogs />}
    </>
  );
}

function jump(id: string) {
  return (event: Event) => {
    event.preventDefault(); // the fragment is the page's state
    (document.querySelector<HTMLElement>(`#${id} [tabindex="0"]`) ?? document.getElementById(id))?.focus();
  };
}

function Intro() {
  const w = words.value;
  const one = shownCase.value;
  // Examples are of the bundled model, which may not be the one of this server.
  const writer = reading.value?.document?.trace.model;
  const author = model.value !== null && writer?.fingerprint !== model.value.fingerprint ? writer : undefined;
  return (
    <div class="intro">
      <h1>{w.intro.title}</h1>
      <p>{w.intro.says}</p>
      {one !== null && (
        <p class="case">
          <b>{one.title[language.value] ?? one.title.en}.</b> {one.text[language.value] ?? one.text.en}
          {author !== undefined && <small> {w.intro.by(author.name)}</small>}
        </p>
      )}
    </div>
  );
}

/** The origin of a file's text: model, seed and steering. */
function About() {
  const w = words.value.about;
  const found = reading.value?.document;
  if (!found) return null;
  const { trace } = found;
  return (
    <dl class="about">
      <dt>{w.model}</dt>
      <dd>
        {trace.model.name} <code>{trace.model.fingerprint.slice(0, 8)}</code>
      </dd>
      {trace.seed !== null && (
        <>
          <dt>{w.seed}</dt>
          <dd class="number">{trace.seed}</dd>
        </>
      )}
      {trace.steering.length > 0 && (
        <>
          <dt>{w.steering}</dt>
          <dd>{trace.steering.join("; ")}</dd>
        </>
      )}
    </dl>
  );
}
