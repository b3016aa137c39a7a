import { UserError } from '../errors.ts';

/** A place in a configuration file, both counted from 1. */
export interface Position {
  line: number;
  column: number;
}

interface Problem {
  position: Position;
  text: string;
}

/** Collects everything that is wrong with one file, so that the user hears of it all at once. */
export class Problems {
  readonly file: string;
  readonly #errors: Problem[] = [];
  readonly #warnings: Problem[] = [];

  constructor(file: string) {
    this.file = file;
  }

  get count(): number {
    return this.#errors.length;
  }

  error(position: Position, text: string): void {
    this.#errors.push({ position, text });
  }

  warn(position: Position, text: string): void {
    this.#warnings.push({ position, text });
  }

  /** The warnings as `file:line:column: text`, in the order of the file. */
  warnings(): string[] {
    return this.#lines(this.#warnings);
  }

  /** @throws UserError with one line per error, in the order of the file, if there was any. */
  throwIfAny(): void {
    if (this.#errors.length > 0) {
      throw new UserError(this.#lines(this.#errors).join('\n'));
    }
  }

  #lines(problems: Problem[]): string[] {
    return problems
      .toSorted(
        (a, b) => a.position.line - b.position.line || a.position.column - b.position.column,
      )
      .map(({ position, text }) => `${this.file}:${position.line}:${position.column}: ${text}`);
  }
}
