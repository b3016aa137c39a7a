/** Text is handed out in parts of about this many characters. */
const PART_LENGTH = 1 << 16;

/** The runs of stripes whose header has a bit: first and last of each, ascending. */
export function* stripeRanges(headers: Uint8Array, bit: number): Generator<[number, number]> {
  let first = -1;
  for (let stripe = 0; stripe <= headers.length; stripe++) {
    // Behind the last one there is none.
    const has = (headers[stripe] & bit) !== 0;
    if (has && first < 0) first = stripe;
    if (!has && first >= 0) {
      yield [first, stripe - 1];
      first = -1;
    }
  }
}

/** The same as text, in parts: `0, 1, 4-6, 9`, where a run of two is written as two. */
export function rangeTexts(headers: Uint8Array, bit: number): Generator<string> {
  return joined(headers, bit, ', ', (first, last) => {
    const joint = last - first > 1 ? '-' : ', ';
    return `${first}${last > first ? `${joint}${last}` : ''}`;
  });
}

/** The same as a list of JSON without its brackets, in parts: `[0,1],[4,6],[9,9]`. */
export function jsonRangeTexts(headers: Uint8Array, bit: number): Generator<string> {
  return joined(headers, bit, ',', (first, last) => `[${first},${last}]`);
}

/** A large disk's may be longer than a string can be. */
function* joined(
  headers: Uint8Array,
  bit: number,
  between: string,
  textOf: (first: number, last: number) => string,
): Generator<string> {
  let text = '';
  let separator = '';
  for (const [first, last] of stripeRanges(headers, bit)) {
    text += separator + textOf(first, last);
    separator = between;
    if (text.length >= PART_LENGTH) {
      yield text;
      text = '';
    }
  }
  if (text !== '') yield text;
}
