/** What keeps the house in order: walls between rooms, pages, left-overs. */
import { expect, test } from 'bun:test';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { commands } from '../src/commands/table.ts';

const sources = ['src', 'ffi']
  .flatMap((folder) => [...new Bun.Glob(`${folder}/**/*.ts`).scanSync('.')])
  .filter((path) => !path.endsWith('.d.ts'))
  .sort();

/**
 * The rooms from the ground up: a file imports from its own room and from lower ones. A new room
 * under src/ gets its floor here.
 */
const floors: Record<string, number> = {
  foundations: 0,
  ffi: 1,
  crypto: 2,
  config: 3,
  device: 3,
  stripe: 4,
  remote: 5,
  archive: 5,
  observe: 5,
  replay: 5,
  nbd: 6,
  frontend: 7,
  copy: 7,
  probe: 8,
  doctor: 8,
  top: 8,
  commands: 9,
  main: 10,
};

function roomOf(path: string): string {
  if (path === 'src/main.ts') return 'main';
  const [top, room, ...rest] = path.split('/');
  if (top === 'ffi') return 'ffi';
  return rest.length === 0 ? 'foundations' : room;
}

/** The modules that a file imports or exports from: packages, and paths from the root. */
function importsOf(path: string): string[] {
  const named = readFileSync(path, 'utf8').matchAll(
    /(?:^import|^export|^\} from|\bfrom|\bimport\()\s*'([^']+)'/gm,
  );
  return [...named].map(([, name]) =>
    name.startsWith('.') ? normalize(join(dirname(path), name)) : name,
  );
}

function trackedFiles(): string[] {
  const { exitCode, stdout } = Bun.spawnSync([
    ...['git', '-c', 'safe.directory=*', 'ls-files', '--cached', '--others', '--exclude-standard'],
  ]);
  if (exitCode === 0) return stdout.toString().trimEnd().split('\n').filter(existsSync);
  // A source tree without git: everything but what is built or installed.
  return [...new Bun.Glob('**/*').scanSync({ dot: true })].filter(
    (path) => !/^(build|dist|node_modules|\.git)\//.test(path),
  );
}

function linesWith(pattern: RegExp, paths: string[]): string[] {
  return paths.flatMap((path) =>
    readFileSync(path, 'utf8')
      .split('\n')
      .flatMap((line, index) => (pattern.test(line) ? [`${path}:${index + 1}: ${line}`] : [])),
  );
}

test('only ffi/ imports bun:ffi', () => {
  const users = sources.filter((path) => importsOf(path).includes('bun:ffi'));
  expect(users.length).toBeGreaterThan(0);
  expect(users.filter((path) => !path.startsWith('ffi/'))).toEqual([]);
});

test('every room has its floor', () => {
  const rooms = new Set(sources.map(roomOf));
  expect([...rooms].filter((room) => floors[room] === undefined)).toEqual([]);
});

test('imports run downwards only', () => {
  const upwards = sources
    .filter((path) => !path.endsWith('.test.ts'))
    .flatMap((path) =>
      importsOf(path)
        .filter((target) => /^(src|ffi)\//.test(target))
        .filter((target) => {
          const [from, to] = [roomOf(path), roomOf(target)];
          return from !== to && floors[from] <= floors[to];
        })
        .map((target) => `${path} -> ${target}`),
    );
  expect(upwards).toEqual([]);
});

test('every file is part of the executable', () => {
  const used = new Set<string>();
  const visit = (path: string): void => {
    if (used.has(path)) return;
    used.add(path);
    for (const target of importsOf(path)) if (sources.includes(target)) visit(target);
  };
  visit('src/main.ts');
  for (const path of sources) if (/_(worker|module)\.ts$/.test(path)) visit(path);
  expect(sources.filter((path) => !path.endsWith('.test.ts') && !used.has(path))).toEqual([]);
});

test('every subcommand has its page, which the README points to', () => {
  const readme = readFileSync('README.md', 'utf8');
  const missing = commands
    .filter(({ docs }) => !existsSync(docs) || !readme.includes(docs))
    .map(({ name, docs }) => `${name}: ${docs}`);
  expect(missing).toEqual([]);
});

test('links between pages lead somewhere', () => {
  const pages = trackedFiles().filter((path) => path.endsWith('.md'));
  const broken = pages.flatMap((page) =>
    [...readFileSync(page, 'utf8').matchAll(/\]\((?!\w+:|#)([^)#\s]+)(?:#[^)]*)?\)/g)]
      .map(([, target]) => target)
      .filter((target) => !existsSync(join(dirname(page), target)))
      .map((target) => `${page}: ${target}`),
  );
  expect(broken).toEqual([]);
});

test('nothing is left to do, for now, or commented out', () => {
  const own = trackedFiles().filter((path) => /\.(ts|c|h|md|sh)$|^(scripts|\.ci)\//.test(path));
  const words = ['TO' + 'DO', 'FIX' + 'ME', 'XX' + 'X:', 'HA' + 'CK:'];
  expect(linesWith(new RegExp(`\\b(${words.join('|')})`), own)).toEqual([]);
  const code = own.filter((path) => path.endsWith('.ts'));
  expect(linesWith(/^\s*\/\/\s*(const|let|import|return|await)\b.*;\s*$/, code)).toEqual([]);
});

test('no test is switched off or alone', () => {
  const tests = trackedFiles().filter((path) => path.endsWith('.test.ts'));
  expect(linesWith(/\b(test|it|describe)\.(only|todo|skip)\(/, tests)).toEqual([]);
});

test('git holds nothing that is built or installed, and no file of a megabyte', () => {
  const files = trackedFiles();
  expect(files.filter((path) => /\.(o|so|log|bun-build)$/.test(path))).toEqual([]);
  expect(files.filter((path) => Bun.file(path).size > 1 << 20)).toEqual([]);
});
