export type LogLevel = 'error' | 'warn' | 'info' | 'debug';

export const logLevels: readonly LogLevel[] = ['error', 'warn', 'info', 'debug'];

export type LogFormat = 'human' | 'json';

export const logFormats: readonly LogFormat[] = ['human', 'json'];

/** Plain data, so that it can be posted to a Worker which makes its own Log from it. */
export interface LogSettings {
  level: LogLevel;
  format: LogFormat;
}

export type LogFields = Record<string, string | number | boolean>;

const stderrFd = 2;

/*
 * The modules that writing needs come in with the first line: a queue's thread that has nothing to
 * say stays a megabyte smaller.
 */
const builtin = process.getBuiltinModule;

const colours: Record<LogLevel, string> = {
  error: '\x1b[31m',
  warn: '\x1b[33m',
  info: '\x1b[32m',
  debug: '\x1b[2m',
};

/**
 * Writes log lines to stderr, each with one synchronous write: the threads that log here may block
 * for ever right afterwards, so nothing may wait for an event loop.
 *
 * Human lines are `[LEVEL name] message key=value`; on a terminal the level is coloured (unless
 * NO_COLOR is set) and the local time comes first. Elsewhere there is no time: journald adds it.
 */
export class Log {
  readonly settings: LogSettings;
  readonly name: string;
  readonly #threshold: number;

  constructor(settings: LogSettings, name: string) {
    this.settings = settings;
    this.name = name;
    this.#threshold = logLevels.indexOf(settings.level);
  }

  error(message: string, fields?: LogFields): void {
    this.#write('error', message, fields);
  }

  warn(message: string, fields?: LogFields): void {
    this.#write('warn', message, fields);
  }

  info(message: string, fields?: LogFields): void {
    this.#write('info', message, fields);
  }

  debug(message: string, fields?: LogFields): void {
    this.#write('debug', message, fields);
  }

  /** A log of the same settings for another part of the program. */
  child(name: string): Log {
    return new Log(this.settings, name);
  }

  #write(level: LogLevel, message: string, fields?: LogFields): void {
    if (logLevels.indexOf(level) > this.#threshold) {
      return;
    }
    const line =
      this.settings.format === 'json'
        ? jsonLine(level, this.name, message, fields)
        : humanLine(level, this.name, message, fields, builtin('node:tty').isatty(stderrFd));
    writeToStderr(line);
  }
}

function jsonLine(level: LogLevel, name: string, message: string, fields?: LogFields): string {
  const head = { time: new Date().toISOString(), level, name, msg: message };
  // The head is spread twice: its keys come first, and no field can replace their values.
  return `${JSON.stringify({ ...head, ...fields, ...head })}\n`;
}

function humanLine(
  level: LogLevel,
  name: string,
  message: string,
  fields: LogFields | undefined,
  terminal: boolean,
): string {
  let text = escapeControls(message);
  for (const [key, value] of Object.entries(fields ?? {})) {
    text += ` ${key}=${escapeControls(quoteSpaces(String(value)))}`;
  }
  const label = level.toUpperCase();
  if (!terminal) {
    return `[${label} ${name}] ${text}\n`;
  }
  const time = new Date().toTimeString().slice(0, 8);
  const colour = process.env.NO_COLOR ? '' : colours[level];
  const reset = colour === '' ? '' : '\x1b[0m';
  return `${time} [${colour}${label}${reset} ${name}] ${text}\n`;
}

function quoteSpaces(value: string): string {
  return /[\s"]/.test(value) || value === '' ? JSON.stringify(value) : value;
}

/** Control characters in a message (a file name, say) must not forge lines or drive a terminal. */
export function escapeControls(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
  return text.replace(/[\x00-\x1f\x7f-\x9f]/g, (character) => {
    return `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`;
  });
}

/** A log that cannot be written (closed or full pipe) loses the line; it never stops the data path. */
function writeToStderr(line: string): void {
  const bytes = Buffer.from(line);
  let written = 0;
  try {
    logFd ??= openLog();
    while (written < bytes.length) {
      written += builtin('node:fs').writeSync(logFd, bytes, written);
    }
  } catch {
    return;
  }
}

let logFd: number | undefined;

/**
 * Where stderr is a pipe, opens it once more: writing to a full pipe then fails instead of waiting,
 * and whoever else has the pipe sees nothing of that.
 */
function openLog(): number {
  const { constants, fstatSync, openSync } = builtin('node:fs');
  try {
    if (!fstatSync(stderrFd).isFIFO()) return stderrFd;
    const flags = constants.O_WRONLY | constants.O_APPEND | constants.O_NONBLOCK;
    return openSync(`/proc/self/fd/${stderrFd}`, flags);
  } catch {
    return stderrFd;
  }
}
