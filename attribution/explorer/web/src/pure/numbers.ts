// Formatting of numbers; all panels use these functions, so that signs and digits are consistent.

const MINUS = "−"; // a true minus sign is as wide as the plus

/** Formats a value with its sign; a value that rounds to 0 has no sign. */
export function signed(value: number, digits = 2): string {
  const size = Math.abs(value).toFixed(digits);
  return Number(size) === 0 ? size : (value > 0 ? "+" : MINUS) + size;
}

/** Formats a value with a sign only if it is negative. */
export function plain(value: number, digits = 2): string {
  const size = Math.abs(value).toFixed(digits);
  return value < 0 && Number(size) !== 0 ? MINUS + size : size;
}

/** Formats a fraction as a percentage. */
export function percent(fraction: number, digits = 0): string {
  return `${plain(100 * fraction, digits)} %`;
}

export function signedPercent(fraction: number, digits = 1): string {
  return `${signed(100 * fraction, digits)} %`;
}

/** Formats the size of an error with two significant digits; only an exact 0 is shown as "0". */
export function small(value: number): string {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1) return size.toFixed(2);
  const digits = Math.min(8, 1 - Math.floor(Math.log10(size)));
  return size.toFixed(digits);
}

/** Formats a probability as a percentage, and "< 0.1 %" for values that would round to 0. */
export function probability(value: number): string {
  if (value > 0 && value < 0.001) return "< 0.1 %";
  return `${(100 * value).toFixed(value >= 0.0995 ? 0 : 1)} %`;
}
