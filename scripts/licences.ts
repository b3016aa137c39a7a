/**
 * Prints what the package's `copyright` file says: the licence of ubiblk, and those of all that is linked
 * into the executable. Texts come from where the build takes the code: npm's packages, the Debian packages
 * of static libraries, and packaging/licences for what brings none along.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs';
import { join } from 'node:path';

interface Part {
  name: string;
  version: string;
  licence: string;
  text: string;
}

interface LockEntry {
  version: string;
  license?: string;
  dev?: boolean;
}

function run(...command: string[]): string {
  const done = spawnSync(command[0], command.slice(1), { encoding: 'utf8' });
  if (done.status !== 0) throw new Error(`'${command.join(' ')}' failed: ${done.stderr}`);
  return done.stdout.trim();
}

/** What bun build takes into the executable, and what these packages need: no tools. */
function npmParts(): Part[] {
  const { packages } = JSON.parse(readFileSync('package-lock.json', 'utf8')) as {
    packages: Record<string, LockEntry>;
  };
  const bundled = Object.entries(packages).filter(
    ([path, { dev }]) => path !== '' && !dev && !/node_modules\/(bun|@oven\/.*)$/.test(path),
  );
  const folders = bundled.map(([path]) => path);
  return bundled.map(([path, { version, license }]) => ({
    name: path.replace(/.*node_modules\//, ''),
    version,
    licence: license ?? 'see below',
    text: licenceIn(path, folders),
  }));
}

/** The text that a package brings along, undefined where it brings none. */
function textIn(folder: string): string | undefined {
  const file = readdirSync(folder).find((name) => /^(licen[cs]e|copying)/i.test(name));
  return file && readFileSync(join(folder, file), 'utf8');
}

/** That, or what another package of the same repository under the same licence has. */
function licenceIn(folder: string, folders: readonly string[]): string {
  const origin = (path: string) => {
    const { repository, license } = JSON.parse(readFileSync(join(path, 'package.json'), 'utf8'));
    return `${repository?.url ?? path} ${license}`;
  };
  const same = folders.filter((path) => origin(path) === origin(folder));
  const text = [folder, ...same].map(textIn).find((each) => each !== undefined);
  if (text === undefined)
    throw new Error(`'${folder}' has no licence: add it to packaging/licences`);
  return text;
}

/** The static libraries of the shim, by the packages that they are in. */
function debianParts(): Part[] {
  const archives = run('make', '-s', '-C', 'c', 'archives').split('\n').filter(Boolean);
  const own = archives.filter((path) => !path.includes('isal_crypto'));
  const packages = own.map((path) => run('dpkg', '-S', realpathSync(path)));
  const parts = [...new Set(packages.map((line) => line.split(':')[0]))].map((name) => ({
    name,
    version: /^Version: (.*)$/m.exec(run('dpkg-query', '-s', name))?.[1] ?? '',
    licence: 'see below',
    text: readFileSync(`/usr/share/doc/${name}/copyright`, 'utf8'),
  }));
  if (own.length < archives.length) parts.push(kept('isa-l_crypto', '', 'BSD-3-Clause'));
  return parts;
}

/** What has its licence in packaging/licences. */
function kept(name: string, version: string, licence: string): Part {
  return { name, version, licence, text: readFileSync(`packaging/licences/${name}.txt`, 'utf8') };
}

function runtime(): Part {
  const { version } = JSON.parse(readFileSync('node_modules/bun/package.json', 'utf8'));
  const part = kept('bun', version, 'MIT, and others');
  if (!part.text.includes(`Bun ${version} `)) {
    throw new Error(
      `packaging/licences/bun.txt is not of Bun ${version}: look what it links, and say so`,
    );
  }
  return part;
}

/** The text without the terms of the Apache License, which Debian wants to be pointed to. */
function pointed(text: string): string {
  const terms =
    /[ \t]*Apache License\s+Version 2\.0[\s\S]*?(?:END OF TERMS AND CONDITIONS|limitations under\s+the License\.|$)\n*/;
  return text
    .replace(terms, 'The Apache License, Version 2.0: see the beginning of this file.\n\n')
    .trim();
}

/** Texts that several parts share are there once. */
function printed(parts: readonly Part[]): string {
  const byText = Map.groupBy(parts, ({ text }) => pointed(text));
  return [...byText]
    .map(([text, of]) => {
      const names = of.map(
        ({ name, version, licence }) => `${`${name} ${version}`.trim()} (${licence})`,
      );
      return `${'='.repeat(78)}\n${names.join('\n')}\n${'-'.repeat(78)}\n\n${text}\n`;
    })
    .join('\n');
}

if (!existsSync('build/libubiblk.so')) throw new Error("run 'npm run build' first");
const parts = [runtime(), ...debianParts(), ...npmParts()];
process.stdout.write(`ubiblk
Copyright the authors of ubiblk

Licensed under the Apache License, Version 2.0. On Debian systems its text is in
/usr/share/common-licenses/Apache-2.0, elsewhere in LICENSE.

The executable contains the following, each under its own licence:

${printed(parts)}`);
