// The gallery: examples by category.

import { Menu, closeMenu } from "./menu.tsx";
import { cases, shownCase } from "./store.ts";
import { language, words } from "./words/index.ts";

/** Set by live mode. */
export const actions: { open?: (name: string) => void } = {};

export function CaseMenu() {
  const w = words.value.cases;
  const categories = [...new Set(cases.value.map((one) => one.category))];
  return (
    <Menu id="cases" label={`${w.title} ▾`}>
      <div class="gallery">
        {cases.value.length === 0 && <p class="missing">{w.none}</p>}
        {categories.map((category) => (
          <section key={category}>
            <h3>{w.categories[category] ?? category}</h3>
            <ul>
              {cases.value
                .filter((one) => one.category === category)
                .map((one) => (
                  <li key={one.name}>
                    <button
                      type="button"
                      aria-current={shownCase.value?.name === one.name ? "true" : undefined}
                      onClick={() => {
                        closeMenu("cases");
                        actions.open?.(one.name);
                      }}
                    >
                      <b>{one.title[language.value] ?? one.title.en}</b>
                      <span>{one.text[language.value] ?? one.text.en}</span>
                    </button>
                  </li>
                ))}
            </ul>
          </section>
        ))}
      </div>
    </Menu>
  );
}
