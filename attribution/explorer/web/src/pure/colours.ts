// The tint of a token: its sign and opacity, from its value and the largest value shown.

export interface Tint {
  readonly sign: "up" | "down";
  readonly alpha: number; // opacity of the sign's colour
}

// At most 0.42: the text on the deepest tint keeps a contrast above 4.5 : 1 in both schemes (a test computes it).
const FAINTEST = 0.07;
const DEEPEST = 0.42;

/** The tint of a value on a scale from 0 to `most`; null for a negligible value. */
export function tintOf(value: number, most: number): Tint | null {
  if (!Number.isFinite(value) || most <= 0 || Math.abs(value) < 0.004 * most) return null;
  const part = Math.min(1, Math.abs(value) / most);
  return { sign: value > 0 ? "up" : "down", alpha: FAINTEST + (DEEPEST - FAINTEST) * part };
}

/** The largest absolute value, at least 1e-12 so that it is a valid divisor. */
export function largest(values: Iterable<number>): number {
  let most = 1e-12;
  for (const value of values) most = Math.max(most, Math.abs(value));
  return most;
}

type Colour = readonly [red: number, green: number, blue: number];

/** Composites the colour `over` with an opacity onto `under`. */
export function blend(over: Colour, alpha: number, under: Colour): Colour {
  const mix = (a: number, b: number) => alpha * a + (1 - alpha) * b;
  return [mix(over[0], under[0]), mix(over[1], under[1]), mix(over[2], under[2])];
}

/** The contrast ratio of two colours as WCAG defines it. */
export function contrast(a: Colour, b: Colour): number {
  const light = (colour: Colour) => {
    const [red = 0, green = 0, blue = 0] = colour.map((part) => {
      const value = part / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const [low = 0, high = 0] = [light(a), light(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}
