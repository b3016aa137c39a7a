/** Serves `/metrics` over HTTP, at a Unix socket's path or a TCP address. */
import { chmodSync, lstatSync, rmSync } from 'node:fs';
import { errorName, UserError } from '../errors.ts';
import type { Log } from '../log.ts';

/** Of `metrics_listen`. */
export type MetricsPlace = { path: string } | { host: string; port: number };

const OPEN_METRICS = 'application/openmetrics-text';
const TYPES = {
  open: `${OPEN_METRICS}; version=1.0.0; charset=utf-8`,
  plain: 'text/plain; version=0.0.4; charset=utf-8',
};
const UMASK = 0o117;
const IDLE_S = 30;
/** Of a request, which has no body. */
const MOST_BODY_BYTES = 4096;

/** What the server does with requests, wherever it listens. */
interface Handler {
  fetch: (request: Request) => Response;
  development: boolean;
  error: (error: Error) => Response;
  maxRequestBodySize: number;
}

export class MetricsServer {
  private constructor(
    /** Where it can be asked, in words. */
    readonly place: string,
    private readonly server: Bun.Server<undefined>,
    private readonly remove: () => void,
  ) {
    process.on('exit', remove);
  }

  /**
   * A socket's path must not be another process's: the caller has looked.
   * @param text writes the metrics, in OpenMetrics' format or the older one
   * @throws UserError where it can't listen there
   */
  static start(
    place: MetricsPlace,
    text: (openMetrics: boolean) => string,
    log: Log,
  ): MetricsServer {
    const handler: Handler = {
      fetch: (request) => answer(request, text),
      // Bun's own pages show whoever asks a piece of the program.
      development: false,
      error: (error) => failure(error, log),
      maxRequestBodySize: MOST_BODY_BYTES,
    };
    if ('path' in place) return MetricsServer.atPath(place.path, handler);
    const { host, port } = place;
    const shown = host.includes(':') ? `[${host}]` : host;
    try {
      const server = Bun.serve({
        ...handler,
        hostname: host,
        port,
        idleTimeout: IDLE_S,
        // Two that share a port would be asked by turns.
        reusePort: false,
      });
      return new MetricsServer(`http://${shown}:${server.port}/metrics`, server, () => {});
    } catch (error) {
      throw new UserError(
        `metrics can't be served at '${shown}:${port}': ${errorName(error)}; choose another ` +
          "address for 'metrics_listen'",
      );
    }
  }

  private static atPath(path: string, handler: Handler): MetricsServer {
    makeRoom(path);
    // At no moment may it be open to anybody else.
    const umask = process.umask(UMASK);
    try {
      const server = Bun.serve({ ...handler, unix: path });
      chmodSync(path, 0o660);
      const { ino } = lstatSync(path);
      const remove = () => {
        if (lstatSync(path, { throwIfNoEntry: false })?.ino === ino) rmSync(path, { force: true });
      };
      return new MetricsServer(`'${path}'`, server, remove);
    } catch (error) {
      throw new UserError(
        `metrics can't be served at '${path}': ${errorName(error)}; choose another path for ` +
          "'metrics_listen'",
      );
    } finally {
      process.umask(umask);
    }
  }

  /** Closes all connections and removes the socket. */
  stop(): void {
    void this.server.stop(true);
    process.off('exit', this.remove);
    this.remove();
  }
}

function answer(request: Request, text: (openMetrics: boolean) => string): Response {
  const pathname = pathOf(request.url);
  if (pathname !== '/metrics') {
    return new Response('Metrics are at /metrics.\n', { status: pathname === '/' ? 200 : 404 });
  }
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    return new Response(null, { status: 405, headers: { allow: 'GET, HEAD' } });
  }
  const open = request.headers.get('accept')?.includes(OPEN_METRICS) ?? false;
  return new Response(text(open), { headers: { 'content-type': open ? TYPES.open : TYPES.plain } });
}

/** Of a reader that names no host, as HTTP/1.0 needs none, or an odd one, what is asked for is no URL. */
function pathOf(url: string): string {
  return url.replace(/^https?:\/\/[^/]*/, '').replace(/\?.*$/, '');
}

function failure(error: Error, log: Log): Response {
  log.error(`metrics could not be told: ${error.message}`);
  return new Response('The metrics could not be told; the log says why.\n', { status: 500 });
}

/** Takes away a socket that was left behind. @throws UserError for anything else */
function makeRoom(path: string): void {
  const there = lstatSync(path, { throwIfNoEntry: false });
  if (there && !there.isSocket()) {
    throw new UserError(`'${path}' exists and is not a socket; remove it or choose another path`);
  }
  rmSync(path, { force: true });
}
