const base64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/;

/**
 * Decodes standard base64: padding is mandatory, unused bits are zero, and only white space at the
 * end (a block scalar's newline) is forgiven. Returns undefined for anything else.
 */
export function decodeBase64(text: string): Uint8Array | undefined {
  const trimmed = text.trimEnd();
  if (!base64.test(trimmed)) {
    return undefined;
  }
  const lastGroup = trimmed.slice(-4);
  if (Buffer.from(lastGroup, 'base64').toString('base64') !== lastGroup) {
    return undefined;
  }
  return Buffer.from(trimmed, 'base64');
}
