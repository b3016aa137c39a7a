import { findCommand, parseArguments, type Target } from './commands/arguments.ts';
import { logSettings } from './commands/log_settings.ts';
import { writeOutput } from './commands/output.ts';
import { commands } from './commands/table.ts';
import { UsageError, UserError } from './errors.ts';
import { Log, type LogSettings } from './log.ts';

const exitFailure = 1;
const exitUsage = 2;

/** How errors are logged: as the command line says, once it has been read. */
let errorLog: LogSettings = { level: 'error', format: 'human' };
let logName = 'ubiblk';
/** What usage errors begin with. */
let calledAs = 'ubiblk';

async function main(argv0: string, argv: readonly string[]): Promise<number> {
  const invocation = findCommand(commands, argv0, argv);
  switch (invocation.action) {
    case 'run':
      return runCommand(invocation.target, invocation.args);
    case 'help': {
      const { commandHelp } = await import('./commands/help.ts');
      writeOutput(commandHelp(invocation.command));
      return 0;
    }
    case 'list': {
      const { commandList } = await import('./commands/help.ts');
      writeOutput(commandList(commands, invocation.group));
      return 0;
    }
    case 'version': {
      const { versionText } = await import('./commands/version.ts');
      writeOutput(versionText());
      return 0;
    }
  }
}

async function runCommand({ command, program }: Target, argv: readonly string[]): Promise<number> {
  logName = command.name.replace(' ', '-');
  calledAs = program?.name ?? `ubiblk ${command.name}`;
  const args = parseArguments(command, argv);
  if (args.has('help')) {
    const { commandHelp } = await import('./commands/help.ts');
    writeOutput(commandHelp(command, program));
    return 0;
  }
  if (args.has('version')) {
    const { versionText } = await import('./commands/version.ts');
    writeOutput(versionText(program));
    return 0;
  }
  errorLog = logSettings(args, process.env, command.defaultLogLevel);
  const module = await command.load();
  return module.run(args, new Log(errorLog, logName), program);
}

/** Tells the user of whatever ended the command. @returns the exit status */
function report(error: unknown): number {
  if (error instanceof UsageError) {
    process.stderr.write(`${calledAs}: ${error.message}\nTry '${calledAs} --help'.\n`);
    return exitUsage;
  }
  const log = new Log(errorLog, logName);
  if (error instanceof UserError) {
    for (const line of error.message.split('\n')) {
      log.error(line);
    }
    return exitFailure;
  }
  const message = error instanceof Error ? error.message : String(error);
  log.error(`internal error: ${message}; please report it with the output of --log-level debug`);
  if (error instanceof Error && error.stack !== undefined) {
    log.debug(error.stack);
  }
  return exitFailure;
}

// Threads that block in the kernel keep the event loop alive: the end must be said.
process.on('uncaughtException', (error) => process.exit(report(error)));
process.on('unhandledRejection', (error) => process.exit(report(error)));
process.exit(await main(process.argv0, process.argv.slice(2)).catch(report));
