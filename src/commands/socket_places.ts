import { accessSync, constants, lstatSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { socketPathProblem } from '../config/socket_path.ts';
import { errorName, UserError } from '../errors.ts';

/**
 * Finds before anything is opened what would keep a server's sockets from being made.
 * @param sockets what each is called, and its path; undefined where there is none
 * @throws UserError where one can't be, or where two have the same path
 */
export function checkSocketPlaces(sockets: readonly [name: string, path?: string][]): void {
  const names = new Map<string, string>();
  for (const [name, path] of sockets) {
    if (path === undefined) continue;
    checkSocketPath(path);
    const other = names.get(resolve(path));
    if (other !== undefined) {
      throw new UserError(`${name} and ${other} are both '${path}'; they need two paths`);
    }
    names.set(resolve(path), name);
  }
}

function checkSocketPath(socket: string): void {
  const problem = socketPathProblem(socket);
  if (problem !== undefined) {
    throw new UserError(`the socket path '${socket}' ${problem}`);
  }
  const directory = dirname(socket);
  try {
    accessSync(`${directory}/.`, constants.W_OK | constants.X_OK);
  } catch (error) {
    throw new UserError(directorySentence(directory, socket, errorName(error)));
  }
  const there = lstatSync(socket, { throwIfNoEntry: false });
  if (there !== undefined && !there.isSocket()) {
    throw new UserError(
      `'${socket}' exists and is not a socket; remove it or choose another path for the socket`,
    );
  }
}

function directorySentence(directory: string, socket: string, code: string): string {
  switch (code) {
    case 'ENOENT':
      return `the directory '${directory}' of the socket '${socket}' does not exist; create it`;
    case 'ENOTDIR':
      return `'${directory}', where the socket '${socket}' should be, is not a directory`;
    default:
      return `the socket '${socket}' cannot be made in its directory '${directory}': ${code}`;
  }
}

/**
 * A connection shows whether another process listens; one that nobody serves is refused at once.
 * @throws UserError where somebody does
 */
export async function refuseBusySocket(socket: string | undefined): Promise<void> {
  if (socket === undefined || lstatSync(socket, { throwIfNoEntry: false }) === undefined) {
    return;
  }
  const connection = await Bun.connect({ unix: socket, socket: { data() {} } }).catch(() => null);
  if (connection !== null) {
    connection.end();
    throw new UserError(
      `another process listens on the socket '${socket}'; stop it or choose another path`,
    );
  }
}
