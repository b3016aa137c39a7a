/**
 * What is said over the RPC socket: lines of JSON both ways, `{"command":"status"}` and its answer, an
 * object. Answers have their keys in alphabetical order; those to bad requests have `error`, a sentence,
 * and `code`, a word that stays the same.
 */
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';

/** Gives the whole answer, an object, or nothing for `{}`. What it throws becomes an error answer. */
export type RpcHandler = () => unknown | Promise<unknown>;

/** The commands of a server by their names. */
export type RpcCommands = Readonly<Record<string, RpcHandler>>;

/** An error answer: `code` is for programs, the message for people. */
export class RpcError extends Error {
  override name = 'RpcError';

  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

/** @returns the line that answers a request, without its end; never rejects */
export async function answerTo(line: string, commands: RpcCommands, log: Log): Promise<string> {
  try {
    return sortedJson((await handlerOf(line, commands)()) ?? {});
  } catch (error) {
    if (error instanceof RpcError) return errorAnswer(error);
    const { message } = error as Error;
    if (error instanceof UserError) return errorAnswer(new RpcError('failed', message));
    log.error(`an RPC command failed by an internal error: ${message}`);
    log.debug((error as Error).stack ?? '');
    return errorAnswer(new RpcError('internal_error', `internal error: ${message}`));
  }
}

/** The line for an error, without its end. */
export function errorAnswer({ code, message }: RpcError): string {
  return sortedJson({ code, error: message });
}

function handlerOf(line: string, commands: RpcCommands): RpcHandler {
  const name = commandOf(line);
  if (!Object.hasOwn(commands, name)) {
    throw new RpcError('unknown_command', `unknown command: ${name}`);
  }
  return commands[name];
}

function commandOf(line: string): string {
  let request: unknown;
  try {
    request = JSON.parse(line);
  } catch (error) {
    throw invalidRequest((error as Error).message);
  }
  if (typeof request !== 'object' || request === null || Array.isArray(request)) {
    throw invalidRequest("it is not an object with a string 'command'");
  }
  if (!Object.hasOwn(request, 'command')) throw invalidRequest("'command' is missing");
  const { command } = request as { command: unknown };
  if (typeof command !== 'string') throw invalidRequest("'command' is not a string");
  return command;
}

export function invalidRequest(problem: string): RpcError {
  return new RpcError('invalid_request', `invalid request: ${problem}`);
}

function sortedJson(value: unknown): string {
  return JSON.stringify(sorted(value));
}

/** The same value with the keys of all objects in alphabetical order. */
function sorted(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(sorted);
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(entries.map(([key, inner]) => [key, sorted(inner)]));
}
