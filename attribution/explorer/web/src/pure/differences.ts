// A difference of two lists, by their longest common subsequence.

const MOST = 1_500; // pieces; for longer lists only a common beginning and end are found

/** For each element of `after`, whether it is not part of the common subsequence with `before`. */
export function differing(before: readonly string[], after: readonly string[]): boolean[] {
  let start = 0;
  while (start < before.length && start < after.length && before[start] === after[start]) start += 1;
  let end = 0;
  while (end < before.length - start && end < after.length - start && before.at(-1 - end) === after.at(-1 - end))
    end += 1;
  const marks = after.map((_, at) => at >= start && at < after.length - end);
  const a = before.slice(start, before.length - end);
  const b = after.slice(start, after.length - end);
  if (a.length === 0 || b.length === 0 || a.length > MOST || b.length > MOST) return marks;
  // lengths[i][j]: of the longest common subsequence of a from i on and b from j on
  const width = b.length + 1;
  const lengths = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      lengths[i * width + j] =
        a[i] === b[j]
          ? lengths[(i + 1) * width + j + 1]! + 1
          : Math.max(lengths[(i + 1) * width + j]!, lengths[i * width + j + 1]!);
    }
  }
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) {
      marks[start + j] = false;
      i += 1;
      j += 1;
    } else if (lengths[(i + 1) * width + j]! >= lengths[i * width + j + 1]!) i += 1;
    else j += 1;
  }
  return marks;
}
