// Help: the keyboard shortcuts, and the legend of colours and patterns.

import { Menu } from "./menu.tsx";
import { mode } from "./store.ts";
import { words } from "./words/index.ts";

export function HelpButton() {
  const w = words.value.help;
  return (
    <Menu id="help" label="?" name={w.title}>
      <h2>{w.title}</h2>
      <dl class="keys">
        {w.keys
          .filter(([, , liveOnly]) => !liveOnly || mode.value === "live")
          .map(([key, does]) => (
            <>
              <dt key={key}>
                <kbd>{key}</kbd>
              </dt>
              <dd>{does}</dd>
            </>
          ))}
      </dl>
      <h3>{w.signsTitle}</h3>
      <ul class="key signs">
        {(["up", "down", "known", "discovered", "epsilon"] as const).map((sign) => (
          <li key={sign}>
            <i class={sign} />
            {w[sign]}
          </li>
        ))}
      </ul>
    </Menu>
  );
}
