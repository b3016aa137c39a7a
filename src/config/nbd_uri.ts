/** NBD URIs (doc/uri.md of NetworkBlockDevice/nbd), with libnbd's parameters for TLS. */
import { UserError } from '../errors.ts';

/** Where an NBD server is, and which of its exports is meant. */
export interface NbdPlace {
  /** As it was given. */
  uri: string;
  /** Path of a Unix socket; else host and port. */
  socket?: string;
  host?: string;
  port?: number;
  exportName: string;
  tls: boolean;
  /** `tls-psk-file`. */
  pskFile?: string;
  /** Of the TLS identity. */
  user?: string;
}

const DEFAULT_PORT = 10809;
const SCHEMES = ['nbd', 'nbds', 'nbd+unix', 'nbds+unix'];

/** Whether a text is meant as an NBD URI. */
export function isNbdUri(text: string): boolean {
  return /^nbds?(\+[a-z]+)?:/.test(text);
}

/** @throws UserError that says what is wrong with the URI */
export function parseNbdUri(uri: string): NbdPlace {
  const refuse = (what: string) =>
    new UserError(`'${uri}' is no NBD URI that can be used: ${what}`);
  const parts = /^([a-z+]+):(?:\/\/([^/?#]*))?([^?#]*)(?:\?([^#]*))?(#.*)?$/.exec(uri);
  const scheme = parts?.[1] ?? '';
  if (!parts || !SCHEMES.includes(scheme))
    throw refuse(`it must begin with ${SCHEMES.join(':// , ')}://`);
  const [, , authority = '', path, query = ''] = parts;
  const parameters = parametersOf(query, refuse);
  const place: NbdPlace = {
    uri,
    exportName: decode(path.replace(/^\//, ''), refuse),
    tls: scheme.startsWith('nbds'),
  };
  const at = authority.lastIndexOf('@');
  if (at > 0) place.user = decode(authority.slice(0, at), refuse);
  if (scheme.endsWith('+unix')) {
    const socket = parameters.get('socket');
    if (!socket) throw refuse("it needs '?socket=PATH'");
    place.socket = socket;
  } else {
    if (parameters.has('socket')) throw refuse(`'socket' needs the scheme ${scheme}+unix`);
    Object.assign(place, hostOf(authority.slice(at + 1), refuse));
  }
  const certificates = parameters.get('tls-certificates');
  if (certificates !== undefined) throw refuse('TLS by certificates is not supported, only by PSK');
  const pskFile = parameters.get('tls-psk-file');
  if (pskFile !== undefined) place.pskFile = pskFile;
  if (place.tls && pskFile === undefined) throw refuse("TLS needs '?tls-psk-file=FILE'");
  return place;
}

/** An NBD URI of an export at a Unix socket or at `host:port`. */
export function nbdUri(
  place: { socket?: string; address?: string },
  name: string,
  tls: boolean,
): string {
  const scheme = tls ? 'nbds' : 'nbd';
  const path = encodeURIComponent(name);
  if (place.socket === undefined) return `${scheme}://${place.address}/${path}`;
  const socket = encodeURIComponent(place.socket).replaceAll('%2F', '/');
  return `${scheme}+unix:///${path}?socket=${socket}`;
}

type Refuse = (what: string) => UserError;

function hostOf(text: string, refuse: Refuse): { host: string; port: number } {
  const match = /^(\[[0-9A-Za-z:.%]+\]|[^:]*)(?::(\d{0,5}))?$/.exec(text);
  if (!match) throw refuse('host and port must be HOST:PORT, an IPv6 address in brackets');
  const port = match[2] ? Number(match[2]) : DEFAULT_PORT;
  if (port < 1 || port > 65535) throw refuse(`there is no port ${port}`);
  return { host: match[1].replace(/^\[(.*)\]$/, '$1') || 'localhost', port };
}

function parametersOf(query: string, refuse: Refuse): Map<string, string> {
  const parameters = new Map<string, string>();
  for (const part of query.split(/[&;]/).filter(Boolean)) {
    const equals = part.indexOf('=');
    if (equals < 1) throw refuse(`'${part}' is not NAME=VALUE`);
    parameters.set(part.slice(0, equals), decode(part.slice(equals + 1), refuse));
  }
  return parameters;
}

function decode(text: string, refuse: Refuse): string {
  try {
    const decoded = decodeURIComponent(text);
    if (!decoded.includes('\0')) return decoded;
  } catch {
    // Told below.
  }
  throw refuse(`'${text}' is badly quoted`);
}
