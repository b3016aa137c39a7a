/** Addresses of servers: `host:port`, an IPv6 address in brackets. */

/** Whether a text is `host:port`, an IPv6 address in brackets. */
export function isAddress(address: string, leastPort: number): boolean {
  const match = /^(?:\[[0-9A-Za-z:.%]+\]|[^\s:[\]/]+):(\d{1,5})$/.exec(address);
  const port = Number(match?.[1] ?? -1);
  return port >= leastPort && port <= 65535;
}

/** The host and port of `host:port`. */
export function splitAddress(address: string): { host: string; port: number } {
  const colon = address.lastIndexOf(':');
  const host = address.slice(0, colon).replace(/^\[(.*)\]$/, '$1');
  return { host, port: Number(address.slice(colon + 1)) };
}
