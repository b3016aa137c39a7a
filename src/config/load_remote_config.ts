import type { ArchiveConfig, ListenConfig, RemoteSource } from './device_config.ts';
import { loadKekFile, noKek } from './kek.ts';
import { Problems } from './problems.ts';
import { SecretReader } from './secret_reader.ts';
import { readArchive, readListen, readRemote } from './stripe_source.ts';
import { readTextFile } from './text_file.ts';
import { type Mapping, parseMapping } from './yaml_mapping.ts';

export interface RemoteLoadOptions {
  /** The KEK file; without it secrets are taken as they are. */
  kekFile?: string;
  /** Unknown keys are errors, not warnings. */
  strict?: boolean;
  warn: (line: string) => void;
}

export interface Loaded<Config> {
  config: Config;
  wipeSecrets: () => void;
}

/** Reads where a stripe server is to listen, `--listen-config`. @throws UserError */
export function loadListenConfig(file: string, options: RemoteLoadOptions): Loaded<ListenConfig> {
  return load(file, options, readListen);
}

/** Reads which stripe server is meant, `--server-config`. @throws UserError */
export function loadServerConfig(file: string, options: RemoteLoadOptions): Loaded<RemoteSource> {
  return load(file, options, readRemote);
}

/** Reads where an archive is, `--target-config` (spec/config.md A.6). @throws UserError */
export function loadTargetConfig(file: string, options: RemoteLoadOptions): Loaded<ArchiveConfig> {
  return load(file, options, readArchive);
}

function load<Config>(
  file: string,
  { kekFile, strict = false, warn }: RemoteLoadOptions,
  read: (mapping: Mapping, secrets: SecretReader) => Config | undefined,
): Loaded<Config> {
  const kek = kekFile === undefined ? noKek : loadKekFile(kekFile, strict, warn);
  const secrets = new SecretReader(kek);
  const { text, openToOthers } = readTextFile(file, 'configuration file');
  try {
    const problems = new Problems(file);
    const mapping = parseMapping(text, problems, strict);
    const config = mapping && read(mapping, secrets);
    mapping?.reportUnknownKeys();
    for (const line of problems.warnings()) warn(line);
    if (secrets.fieldCount > 0 && openToOthers) {
      warn(
        `the configuration file '${file}' holds secrets but is open to its group or to others; ` +
          'chmod it to 600',
      );
    }
    problems.throwIfAny();
    return { config: config as Config, wipeSecrets: () => secrets.wipe() };
  } catch (error) {
    secrets.wipe();
    throw error;
  } finally {
    text.wipe();
    kek.wipe();
  }
}
