/** The commands of the stripe shell: each is one line, and so is its answer. */

import { HAS_SOURCE, WRITTEN } from '../stripe/shared_state.ts';
import type { Memory } from './channel.ts';
import type { RemoteStripes } from './protocol.ts';

/** What the shell needs of a connection. */
export interface ShellServer {
  readonly stripes: RemoteStripes;
  readStripe(stripe: number, buffer: Memory, length: number): Promise<void>;
}

export const SHELL_HELP = [
  'stripe_header N        the bits of stripe N, and whether it was written to',
  'fetch_stripe N         fetches stripe N from the server, for dump_stripe',
  'dump_stripe N OFF LEN  LEN bytes of stripe N from OFF on, in hexadecimal',
  'help                   this list',
  'exit, quit             ends the shell',
].join('\n');

export class StripeShell {
  private readonly fetched = new Map<number, Uint8Array>();

  /** @param memory for one stripe */
  constructor(
    private readonly server: ShellServer,
    private readonly memory: Memory,
  ) {}

  /**
   * Carries out a command.
   * @returns what to print; null at the end
   */
  async run(line: string): Promise<string | null> {
    const [command, ...words] = line.trim().split(/\s+/);
    try {
      switch (command) {
        case '':
          return '';
        case 'help':
          return SHELL_HELP;
        case 'exit':
        case 'quit':
          return null;
        case 'stripe_header':
          return this.header(numberOf(words, 0, 'N'));
        case 'fetch_stripe':
          return await this.fetch(numberOf(words, 0, 'N'));
        case 'dump_stripe':
          return this.dump(
            numberOf(words, 0, 'N'),
            numberOf(words, 1, 'OFF'),
            numberOf(words, 2, 'LEN'),
          );
        default:
          return `UNKNOWN_COMMAND: ${command}\ntype 'help' for a list of commands`;
      }
    } catch (error) {
      if (error instanceof ArgumentError) return `error: ${error.message}`;
      throw error;
    }
  }

  private header(stripe: number): string {
    const { headers } = this.server.stripes;
    if (stripe >= headers.length) return 'INVALID_STRIPE';
    const text = headers[stripe].toString(16).padStart(2, '0');
    return `0x${text} ${(headers[stripe] & WRITTEN) === 0 ? 'NOT_WRITTEN' : 'WRITTEN'}`;
  }

  private async fetch(stripe: number): Promise<string> {
    const { headers, stripeBytes } = this.server.stripes;
    if (stripe >= headers.length) return 'INVALID_STRIPE';
    try {
      await this.server.readStripe(stripe, this.memory, stripeBytes);
    } catch (error) {
      return `error: ${(error as Error).message}`;
    }
    this.fetched.set(stripe, this.memory.bytes.slice(0, stripeBytes));
    return 'FETCHED';
  }

  private dump(stripe: number, offset: number, length: number): string {
    const { headers, stripeBytes } = this.server.stripes;
    if (stripe >= headers.length) return 'INVALID_STRIPE';
    const inRange = offset + length <= stripeBytes;
    if ((headers[stripe] & (WRITTEN | HAS_SOURCE)) === 0) {
      return inRange ? '00'.repeat(length) : 'INVALID_RANGE';
    }
    const data = this.fetched.get(stripe);
    if (!data) return 'NOT_FETCHED_FROM_REMOTE';
    if (!inRange) return 'INVALID_RANGE';
    return Buffer.from(data.buffer, data.byteOffset + offset, length).toString('hex');
  }
}

class ArgumentError extends Error {}

function numberOf(words: readonly string[], at: number, name: string): number {
  const word = words[at];
  if (word === undefined) throw new ArgumentError(`MISSING_ARGUMENT: ${name}`);
  if (!/^\d{1,15}$/.test(word)) throw new ArgumentError(`INVALID_NUMBER: ${word}`);
  return Number(word);
}
