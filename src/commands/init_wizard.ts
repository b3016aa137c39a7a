/** Asks on a terminal for what the command line has not said. */
import { createInterface, type Interface } from 'node:readline/promises';
import { UsageError, UserError } from '../errors.ts';
import { checkBase, defaultStripeSize, type Given, parseStripeSize } from './init_plan.ts';
import { parseSize } from './size.ts';

const defaultSize = '1G';
const INTERRUPTED = 130;

/** What was answered: a folder, and options. */
export class Answers implements Given {
  readonly values = new Map<string, string | true>();

  constructor(
    private readonly given: Given,
    public folder: string,
  ) {}

  has(long: string): boolean {
    return this.values.has(long) || this.given.has(long);
  }

  value(long: string): string | undefined {
    const value = this.values.get(long);
    return typeof value === 'string' ? value : this.given.value(long);
  }
}

/**
 * Asks for the folder, unless it is given, and for the options that aren't; then whether all is right.
 * @returns null where it isn't
 * @throws UserError where the answers end
 */
export async function ask(given: Given, folder: string | undefined): Promise<Answers | null> {
  const lines = createInterface({ input: process.stdin, output: process.stderr, terminal: true });
  lines.on('SIGINT', () => {
    process.stderr.write('\n');
    process.exit(INTERRUPTED);
  });
  const closed = new Promise<never>((_, reject) => {
    lines.on('close', () => reject(new UserError('the answers ended; nothing was made')));
  });
  closed.catch(() => {});
  try {
    return await Promise.race([new Wizard(lines, given).run(folder), closed]);
  } finally {
    lines.close();
  }
}

class Wizard {
  constructor(
    private readonly lines: Interface,
    private readonly given: Given,
  ) {}

  async run(folder: string | undefined): Promise<Answers | null> {
    const { given } = this;
    const answers = new Answers(given, folder ?? (await this.text('Folder', '.')));
    const options = async (long: string, question: () => Promise<string | boolean>) => {
      if (given.has(long)) return;
      const answer = await question();
      if (answer === true) answers.values.set(long, true);
      else if (answer) answers.values.set(long, answer);
    };
    await options('size', () =>
      this.text('Size of the disk', defaultSize, (size) => parseSize('the size', size)),
    );
    const sizeBytes = parseSize('--size', String(answers.value('size')));
    await options('base', () =>
      this.text('Raw image to start from, or nothing', '', (path) => {
        if (path !== '') checkBase(path, sizeBytes);
      }),
    );
    await options('encrypt', () => this.yesNo('Encrypt the disk', false));
    await options('stripe-size', () =>
      this.text('Size of its stripes, 32K to 32M', defaultStripeSize, parseStripeSize),
    );
    await options('num-queues', () =>
      this.text('Queues, 1 to 64', '1', (text) => {
        if (!/^\d+$/.test(text) || Number(text) < 1 || Number(text) > 64) {
          throw new UsageError(`a whole number from 1 to 64, not '${text}'`);
        }
      }),
    );
    return (await this.yesNo(`Make the disk in '${answers.folder}'`, true)) ? answers : null;
  }

  /** Asks until the answer will do. */
  private async text(
    question: string,
    otherwise: string,
    check: (answer: string) => unknown = () => {},
  ): Promise<string> {
    for (;;) {
      const hint = otherwise === '' ? '' : ` [${otherwise}]`;
      const answer = (await this.lines.question(`${question}${hint}: `)).trim() || otherwise;
      try {
        check(answer);
        return answer;
      } catch (error) {
        if (!(error instanceof UsageError || error instanceof UserError)) throw error;
        process.stderr.write(`  ${error.message}\n`);
      }
    }
  }

  private async yesNo(question: string, otherwise: boolean): Promise<boolean> {
    const answer = await this.text(`${question}?`, otherwise ? 'y' : 'n', (text) => {
      if (!/^(y|yes|n|no)$/i.test(text)) throw new UsageError(`y or n, not '${text}'`);
    });
    return /^y/i.test(answer);
  }
}
