/** Makes the files of a device folder, all of them or none. */
import { existsSync, ftruncateSync, mkdirSync, rmdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { NewFile } from '../../ffi/new_file.ts';
import { loadKekFile } from '../config/kek.ts';
import { loadDeviceConfig } from '../config/load_device_config.ts';
import type { Secret } from '../crypto/secret.ts';
import { expandXts, freeXts } from '../crypto/xts.ts';
import { refuseUsedDisk } from '../device/disk.ts';
import { errorName, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { refuseSameFiles } from '../stripe/distinct_files.ts';
import { type InitPlan, names } from './init_plan.ts';
import { unitName, unitText } from './init_unit.ts';
import { freshKeys, wrapKeys, yamlParts } from './keys_generate.ts';
import { freshKek, writeNewFile } from './keys_kek.ts';
import { initDisk } from './metadata_init.ts';
import type { Progress } from './progress.ts';
import { secretText } from './secret_text.ts';

/** What was made: names of files in the folder, or paths of those elsewhere, and what they are. */
export interface MadeFile {
  path: string;
  what: string;
}

const FOLDER_MODE = 0o700;
const KEK_AUTH_DATA = 'ubiblk';

/**
 * Makes a device folder.
 * @param executable the absolute path of ubiblk, for the unit
 * @returns what was made, the first one first
 * @throws UserError; then nothing is left of what wasn't there before
 */
export async function makeFolder(
  plan: InitPlan,
  executable: string,
  progress: Progress,
  log: Log,
): Promise<MadeFile[]> {
  const maker = new FolderMaker(plan, executable, progress, log);
  process.on('exit', maker.undo);
  try {
    return await maker.make();
  } catch (error) {
    maker.undo();
    throw error;
  } finally {
    process.off('exit', maker.undo);
  }
}

class FolderMaker {
  private readonly made: MadeFile[] = [];
  /** What was not there before, the last one last. */
  private readonly created: string[] = [];
  private firstFolder: string | undefined;
  private there = new Set<string>();
  private readonly paths: Record<'disk' | 'metadata' | 'config' | 'unit', string>;

  constructor(
    private readonly plan: InitPlan,
    private readonly executable: string,
    private readonly progress: Progress,
    private readonly log: Log,
  ) {
    const at = (name: string) => join(plan.folder, name);
    this.paths = {
      disk: at(names.disk),
      metadata: at(names.metadata),
      config: at(names.config),
      unit: at(unitName(plan)),
    };
  }

  /** Takes back what was made. */
  readonly undo = (): void => {
    for (const path of this.created.splice(0).reverse()) rmSync(path, { force: true });
    for (let folder = this.plan.folder; this.firstFolder !== undefined; folder = dirname(folder)) {
      if (folder === this.firstFolder) this.firstFolder = undefined;
      try {
        rmdirSync(folder);
      } catch {
        // Somebody else has put something there.
        return;
      }
    }
  };

  async make(): Promise<MadeFile[]> {
    const { kek, base, force, folder } = this.plan;
    const wanted = [...Object.values(this.paths), ...(kek === undefined ? [] : [kek])];
    if (new Set(wanted).size < wanted.length) {
      throw new UserError(`the KEK can't be at '${kek}', where another file goes; choose its own`);
    }
    this.there = new Set(wanted.filter((path) => existsSync(path)));
    if (kek !== undefined && this.there.has(kek) && dirname(kek) !== folder) {
      throw new UserError(
        `the KEK '${kek}' is there already, and other disks may need it; name a new file`,
      );
    }
    const [first] = this.there;
    if (first !== undefined && !force) {
      throw new UserError(
        `'${first}' is there already; choose another folder, or give --force to replace it and all ` +
          'that it holds',
      );
    }
    const image = base === undefined ? [] : [{ role: 'the image', path: base }];
    refuseSameFiles([...wanted.map((path) => ({ role: 'a file to be made', path })), ...image]);
    if (this.there.has(this.paths.disk)) await refuseUsedDisk(this.paths.disk, this.log);
    try {
      this.firstFolder = mkdirSync(folder, { recursive: true, mode: FOLDER_MODE });
    } catch (error) {
      throw new UserError(`the folder '${folder}' cannot be made: ${errorName(error)}`);
    }
    await this.makeDisk();
    if (kek !== undefined) await this.makeKek(kek);
    await this.makeConfig();
    await this.makeMetadata();
    await this.makeUnit();
    return this.made;
  }

  private async makeDisk(): Promise<void> {
    const { sizeBytes } = this.plan;
    const path = this.paths.disk;
    await this.file(path, 'the disk, which takes no room yet', (fd) => {
      try {
        ftruncateSync(fd, sizeBytes);
      } catch (error) {
        throw new UserError(`'${path}' cannot get ${sizeBytes} bytes: ${errorName(error)}`);
      }
    });
  }

  private async makeKek(path: string): Promise<void> {
    const text = freshKek(KEK_AUTH_DATA);
    try {
      await this.write(path, 'the key that wraps the keys of the disk: keep it secret', text);
    } finally {
      text.wipe();
    }
  }

  private async makeConfig(): Promise<void> {
    const { kek, base, settings } = this.plan;
    const lines = [
      '# Made by ubiblk init; docs/configuration.md has all fields.',
      `path: ${JSON.stringify(this.paths.disk)}`,
      `metadata_path: ${JSON.stringify(this.paths.metadata)}`,
      ...Object.entries(settings).map(([key, value]) => `${key}: ${JSON.stringify(value)}`),
    ];
    if (base !== undefined) {
      lines.push(`stripe_source: {source: raw, path: ${JSON.stringify(base)}}`);
    }
    const parts: (string | Secret)[] = [`${lines.join('\n')}\n`];
    if (kek !== undefined) {
      const wrapping = loadKekFile(kek, true, () => {});
      try {
        parts.push(...yamlParts(wrapKeys(freshKeys(), wrapping), wrapping));
      } finally {
        wrapping.wipe();
      }
    }
    const text = secretText(parts);
    for (const part of parts) if (typeof part !== 'string') part.wipe();
    try {
      await this.write(this.paths.config, 'its configuration', text);
    } finally {
      text.wipe();
    }
  }

  /** Reads what was written, as a server will. */
  private async makeMetadata(): Promise<void> {
    const { kek, shift } = this.plan;
    const kekFile = kek === undefined ? {} : { kekFile: kek };
    const { config, wipeSecrets } = loadDeviceConfig(this.paths.config, {
      ...kekFile,
      strict: true,
      warn: (line) => this.log.warn(line),
    });
    const xts = config.encryptionKey === undefined ? 0 : expandXts(config.encryptionKey);
    wipeSecrets();
    const path = this.paths.metadata;
    this.note(path, 'which of its stripes are where');
    try {
      const geometry = { shift, version: 1 } as const;
      await initDisk(config, path, xts, geometry, this.plan.force, this.progress, this.log);
    } finally {
      freeXts(xts);
    }
  }

  private async makeUnit(): Promise<void> {
    const text = Buffer.from(unitText(this.plan, this.executable));
    await this.file(this.paths.unit, 'a service of systemd that serves it', (fd) => {
      writeNewFile(fd, text, this.paths.unit);
    });
  }

  private async write(path: string, what: string, text: Secret): Promise<void> {
    await this.file(path, what, (fd) => writeNewFile(fd, text.reveal(), path));
  }

  private async file(path: string, what: string, fill: (fd: number) => void): Promise<void> {
    const file = new NewFile(path);
    try {
      fill(file.fd);
      this.note(path, what);
      if (this.plan.force) {
        await file.commit();
      } else if (!(await file.commitAsNew())) {
        this.created.splice(this.created.indexOf(path), 1);
        throw new UserError(`'${path}' has just been made by somebody else; try again`);
      }
    } finally {
      file.discard();
    }
  }

  private note(path: string, what: string): void {
    if (!this.there.has(path)) this.created.push(path);
    this.made.push({ path, what });
  }
}
