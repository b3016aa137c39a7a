/** Text from elsewhere that is to be printed: nothing of it moves a terminal's cursor. */
export function printable(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, '?');
}
