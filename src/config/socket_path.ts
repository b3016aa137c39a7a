/** `sun_path` of struct sockaddr_un holds 108 bytes with the closing NUL. */
const maxSocketPathBytes = 107;

/** What is wrong with the length of a Unix socket's path, as the end of a sentence. */
export function socketPathProblem(path: string): string | undefined {
  const lengthBytes = Buffer.byteLength(path);
  return lengthBytes > maxSocketPathBytes
    ? `is ${lengthBytes} bytes long; the path of a Unix socket has at most ${maxSocketPathBytes}`
    : undefined;
}
