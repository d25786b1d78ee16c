// Numbers as text. Every number on the page goes through here, so that signs and digits are the same everywhere.

const MINUS = "−"; // a true minus sign is as wide as the plus

/** A value with its sign; a value that rounds to 0 has none. */
export function signed(value: number, digits = 2): string {
  const size = Math.abs(value).toFixed(digits);
  return Number(size) === 0 ? size : (value > 0 ? "+" : MINUS) + size;
}

/** A value without a plus. */
export function plain(value: number, digits = 2): string {
  const size = Math.abs(value).toFixed(digits);
  return value < 0 && Number(size) !== 0 ? MINUS + size : size;
}

/** A fraction as a percentage. */
export function percent(fraction: number, digits = 0): string {
  return `${plain(100 * fraction, digits)} %`;
}

export function signedPercent(fraction: number, digits = 1): string {
  return `${signed(100 * fraction, digits)} %`;
}

/** A small positive value such as an error: two significant digits, never "0" where there is one. */
export function small(value: number): string {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1) return size.toFixed(2);
  const digits = Math.min(8, 1 - Math.floor(Math.log10(size)));
  return size.toFixed(digits);
}

/** A probability: percentages, and "< 0.1 %" for what would round to nothing. */
export function probability(value: number): string {
  if (value > 0 && value < 0.001) return "< 0.1 %";
  return `${(100 * value).toFixed(value >= 0.0995 ? 0 : 1)} %`;
}
