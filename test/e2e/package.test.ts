/**
 * What `npm run package` makes: the same twice, without errors of lintian, and good for a bare Debian 12.
 * suite time limit: 900 s
 */
import { expect } from 'bun:test';
import { createHash } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { commands } from '../../src/commands/table.ts';
import { root, tool } from './processes.ts';
import { Bed, need, testWith } from './support.ts';

const dist = join(root, 'dist');
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const deb = join(dist, `ubiblk_${version}_amd64.deb`);
const tarball = join(dist, `ubiblk-${version}-linux-x86_64.tar.gz`);
const programs = commands.flatMap((command) => command.programs.map(({ name }) => name));
const minutes = 60_000;

/** Makes packages of a source tree. @returns digests of both */
async function makePackages(
  bed: Bed,
  tree = root,
  env: Record<string, string> = {},
): Promise<string[]> {
  const script = `umask "$UMASK"; exec ${join(tree, 'scripts/package')}`;
  await bed.run(['bash', '-c', script], { env: { UMASK: '022', ...env }, deadlineMs: 5 * minutes });
  return [deb, tarball].map((path) => {
    const bytes = readFileSync(join(tree, 'dist', basename(path)));
    return createHash('sha256').update(bytes).digest('hex');
  });
}

/** A copy of the source tree, in which nothing is built yet. */
async function copiedTree(bed: Bed): Promise<string> {
  const tree = bed.path('tree');
  const script = `set -e
mkdir "$1"
git -c safe.directory='*' ls-files -z --cached --others --exclude-standard | xargs -0 cp -a --parents -t "$1"
cp -a .git "$1"
ln -s "$PWD/node_modules" "$1/node_modules"`;
  await bed.run(['bash', '-c', script, 'bash', tree], { cwd: root });
  return tree;
}

const needs = [
  need.program('dpkg-deb'),
  need.program('xz'),
  need.program('git'),
  !existsSync(join(root, '.git')) && 'this is no checkout of git',
];
let made: string[] | undefined;

testWith(
  'packages are the same to the bit, whoever makes them where',
  needs,
  async () => {
    await using bed = new Bed();
    made = await makePackages(bed);
    const other = { UMASK: '077', TZ: 'Asia/Tokyo', LC_ALL: 'C.UTF-8' };
    const tree = await copiedTree(bed);
    // Groups that share a folder have it so.
    mkdirSync(join(tree, 'build'));
    chmodSync(join(tree, 'build'), 0o2755);
    expect(await makePackages(bed, tree, other)).toEqual(made);
    await bed.run(['sha256sum', '--check', '--quiet', 'SHA256SUMS'], { cwd: dist });
  },
  10 * minutes,
);

testWith(
  'lintian finds no error in the package',
  [...needs, need.program('lintian')],
  async () => {
    await using bed = new Bed();
    made ??= await makePackages(bed);
    // As root it would say so.
    const argv = [
      'lintian',
      '--allow-root',
      '--fail-on',
      'error',
      '--display-level',
      '>=error',
      deb,
    ];
    const { stdout } = await bed.run(argv, { deadlineMs: 5 * minutes });
    expect(stdout.text).toBe('');
  },
  10 * minutes,
);

const inDebian = `set -eu
deb=$1; shift
files() { find / -xdev -path /proc -prune -o -path /tmp -prune -o -path /var/log -prune -o -path /var/lib/dpkg -prune -o -print | sort; }
files > /tmp/before
dpkg -i "$deb"
dpkg --verify ubiblk
getent passwd ubiblk
stat -c '%n %U:%G %a' /etc/ubiblk /var/lib/ubiblk
ubiblk --version
for program; do "$program" --help > /tmp/help; grep -q Usage /tmp/help; [ -e "/usr/share/man/man1/$program.1.gz" ]; done
cd /tmp
truncate -s 64M disk.raw
printf 'path: disk.raw\\nsocket: disk.sock\\n' > vm.yaml
ubiblk serve vhost --config vm.yaml 2> log & server=$!
until grep -q 'listening on' log; do kill -0 $server; sleep 0.05; done
ubiblk probe --socket disk.sock --write --size 1M --seconds 0.1
# Another package that would replace it, and fails half-way, leaves all as it was.
mkdir -p other/DEBIAN
cat > other/DEBIAN/control << END
Package: other
Version: 1
Architecture: all
Maintainer: nobody <nobody@lists.invalid>
Conflicts: ubiblk
Replaces: ubiblk
Provides: ubiblk
Description: fails
END
printf '#!/bin/sh\\nexit 1\\n' > other/DEBIAN/preinst
chmod 755 other/DEBIAN/preinst
dpkg-deb --build other > /tmp/built
dpkg -i --auto-deconfigure other.deb && exit 1
for program; do "$program" --help > /tmp/help; done
dpkg -r ubiblk
kill -0 $server
ubiblk --version && exit 1
kill $server
wait $server
# Once more where there is no systemd at all.
dpkg -r systemd-standalone-sysusers systemd-standalone-tmpfiles
dpkg -i "$deb"
touch /etc/ubiblk/mine.yaml
dpkg -P ubiblk
cat /etc/ubiblk/mine.yaml
rm -r /etc/ubiblk
# Disks elsewhere.
mkdir /tmp/disks
ln -s /tmp/disks /var/lib/ubiblk
dpkg -i "$deb"
dpkg -P ubiblk
[ -L /var/lib/ubiblk ]
rm /var/lib/ubiblk
files > /tmp/after
diff /tmp/before /tmp/after | grep -v -e '/etc/.*-$' -e systemd -e sysusers -e tmpfiles | grep '^[<>]' || echo 'nothing is left'
`;

testWith(
  'in a bare Debian 12 the package is installed, used, removed, and leaves nothing',
  [...needs, need.program('mmdebstrap'), need.root(), need.program('unshare')],
  async () => {
    await using bed = new Bed();
    made ??= await makePackages(bed);
    const argv = [tool('bare-debian'), '--share', dist, 'bash', '-c', inDebian, 'bash', deb];
    const { stdout } = await bed.run([...argv, ...programs], { deadlineMs: 5 * minutes });
    expect(stdout.text).toMatch(/^ubiblk:x:\d+:\d+:Disks of virtual machines:/m);
    expect(stdout.text).toContain('/etc/ubiblk root:ubiblk 750');
    expect(stdout.text).toContain('/var/lib/ubiblk ubiblk:ubiblk 750');
    expect(stdout.text).toContain('every byte the same');
    expect(stdout.text).toEndWith('nothing is left\n');
  },
  10 * minutes,
);

testWith(
  'the archive for other distributions has the same files, and links for other names',
  needs,
  async () => {
    await using bed = new Bed();
    made ??= await makePackages(bed);
    await bed.run(['tar', '-xzf', tarball, '--strip-components=1'], { cwd: bed.folder });
    const { stdout } = await bed.run([bed.path('bin/ubiblk'), '--version']);
    expect(stdout.text).toContain(version);
    for (const program of programs) {
      const { stdout: help } = await bed.run([bed.path(`compat-bin/${program}`), '--help']);
      expect(help.text).toContain(`$ ${program} [options]`);
    }
    for (const { name } of commands) {
      const page = bed.path(`share/man/man1/ubiblk-${name.replaceAll(' ', '-')}.1.gz`);
      expect({ page, there: existsSync(page) }).toEqual({ page, there: true });
    }
    const copyright = readFileSync(bed.path('share/doc/ubiblk/copyright'), 'utf8');
    for (const part of [
      'bun 1',
      'libssl-dev',
      'liburing-dev',
      'libsnappy-dev',
      'libzstd-dev',
      'yaml 2',
    ]) {
      expect(copyright).toContain(part);
    }
    expect(copyright).toContain('@aws-sdk/client-s3');
    expect(copyright).not.toContain('typescript');
  },
  10 * minutes,
);
