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
        <li>
          <i class="up" />
          {w.up}
        </li>
        <li>
          <i class="down" />
          {w.down}
        </li>
        <li>
          <i class="known" />
          {w.known}
        </li>
        <li>
          <i class="discovered" />
          {w.discovered}
        </li>
        <li>
          <i class="epsilon" />
          {w.epsilon}
        </li>
      </ul>
    </Menu>
  );
}
