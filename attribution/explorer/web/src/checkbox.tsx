// A checkbox with its label.

import type { ComponentChildren } from "preact";

export function Checkbox(props: {
  checked: boolean;
  onChange: (checked: boolean) => void;
  title?: string;
  children: ComponentChildren;
}) {
  return (
    <label title={props.title}>
      <input
        type="checkbox"
        checked={props.checked}
        onChange={(event) => {
          props.onChange(event.currentTarget.checked);
        }}
      />{" "}
      {props.children}
    </label>
  );
}
