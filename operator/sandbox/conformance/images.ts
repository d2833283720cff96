/**
 * The container images that the specs ask for, under the names they ask for, made here: nothing is pulled. The programs in
 * them are the suite's own; what lies around them is busybox and a little of Debian where upstream has Alpine. Left out is
 * what no spec in `specs.ts` uses: dig, iperf, CoreDNS, the registry inside agnhost.
 */
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { archiveOf, type Entry, type Image, layer } from '../clusters/image-archive.ts';
import { appletsOf } from '../clusters/images.ts';
import type { Report } from '../processes.ts';
import { KUBERNETES_VERSION, keepInCache, platform } from '../tools/tools.ts';
import { BUSYBOX_VERSION, buildBusybox, checkBuildTools, librariesOf, unpackPackages } from './debian.ts';
import { type SuitePrograms, suiteSource } from './programs.ts';

const run = promisify(execFile);

/** Raised with every change of what the images hold. */
const RECIPE = 1;

/** What the images are made of. */
export interface Ingredients {
  readonly busybox: Buffer;
  readonly applets: readonly string[];
  readonly agnhost: Buffer;
  readonly nonewprivs: Buffer;
  readonly pause: Buffer;
  /** Certificate and key with which agnhost serves TLS. */
  readonly porter: { readonly certificate: Buffer; readonly key: Buffer };
  /** Path in the image → contents: curl, nc, bash and what they load. */
  readonly tools: ReadonlyMap<string, Buffer>;
}

/** The archive with all images, made once per machine. */
export async function ensureImages(
  programs: SuitePrograms,
  { report }: { readonly report: Report },
  signal?: AbortSignal,
): Promise<string> {
  const what = "the container images of the suite's specs";
  const cacheKey = `e2e-images-v${KUBERNETES_VERSION}-${RECIPE}-${platform}`;
  const folder = await keepInCache(
    { what, cacheKey },
    { report },
    async (into) => {
      await checkBuildTools(signal);
      const busybox = await ensureBusybox(report, signal);
      report(`making ${what} (once per machine, from packages of Debian)`);
      const work = mkdtempSync(join(tmpdir(), 'gpulease-images-'));
      try {
        const images = imagesOf(await gather(programs, busybox, work, signal));
        writeFileSync(join(into, 'images.tar'), archiveOf(images));
      } finally {
        rmSync(work, { recursive: true, force: true });
      }
    },
    signal,
  );
  return join(folder, 'images.tar');
}

async function ensureBusybox(report: Report, signal?: AbortSignal): Promise<string> {
  const what = `busybox ${BUSYBOX_VERSION}`;
  const folder = await keepInCache(
    { what, cacheKey: `busybox-${BUSYBOX_VERSION}-${platform}` },
    { report },
    async (into) => {
      const work = mkdtempSync(join(tmpdir(), 'gpulease-busybox-'));
      try {
        const program = await buildBusybox(work, report, signal);
        writeFileSync(join(into, 'busybox'), readFileSync(program), { mode: 0o755 });
      } finally {
        rmSync(work, { recursive: true, force: true });
      }
    },
    signal,
  );
  return join(folder, 'busybox');
}

async function gather(
  programs: SuitePrograms,
  busybox: string,
  work: string,
  signal?: AbortSignal,
): Promise<Ingredients> {
  const source = await suiteSource(signal);
  const pause = join(work, 'pause');
  await run(
    'gcc',
    ['-Os', '-static', '-s', '-DVERSION=v3.10.2', '-o', pause, join(source, 'build/pause/linux/pause.c')],
    {
      signal,
    },
  );
  const root = join(work, 'root');
  await unpackPackages(['curl', 'netcat-openbsd', 'bash'], root, signal);
  const tools = new Map<string, Buffer>();
  for (const [at, ...places] of [
    ['usr/bin/curl', 'usr/bin/curl'],
    ['usr/bin/nc', 'bin/nc.openbsd', 'usr/bin/nc.openbsd'],
    ['bin/bash', 'bin/bash', 'usr/bin/bash'],
  ] as const) {
    const [file, data] = firstOf(places.map((place) => join(root, place)));
    tools.set(at, data);
    for (const [library, from] of await librariesOf(file, root, signal)) tools.set(library, readFileSync(from));
  }
  const porter = join(source, 'test/images/agnhost/porter');
  return {
    busybox: readFileSync(busybox),
    applets: appletsOf(busybox),
    agnhost: readFileSync(programs.agnhost),
    nonewprivs: readFileSync(programs.nonewprivs),
    pause: readFileSync(pause),
    porter: {
      certificate: readFileSync(join(porter, 'localhost.crt')),
      key: readFileSync(join(porter, 'localhost.key')),
    },
    tools,
  };
}

function firstOf(files: readonly string[]): [string, Buffer] {
  for (const file of files) {
    try {
      return [file, readFileSync(file)];
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
  throw new Error(`none of ${files.join(', ')} is in Debian's packages`);
}

const passwd = 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n';
const group = 'root:x:0:\nnogroup:x:65534:\n';
const text = (path: string, content: string): Entry => ({ path, mode: 0o644, data: Buffer.from(content) });
const folder = (path: string, mode = 0o755): Entry => ({ path, mode });
const program = (path: string, data: Buffer, mode = 0o755): Entry => ({ path, mode, data });
const link = (path: string, linkTo: string): Entry => ({ path, mode: 0o777, linkTo });

const suiteImage = (name: string): string => `registry.k8s.io/e2e-test-images/${name}`;

/** Names and tags are those of the pinned release: test/utils/image/manifest.go there. */
export function imagesOf(from: Ingredients): Image[] {
  const base = layer([
    ...['tmp/', 'var/tmp/'].map((path) => folder(path, 0o1777)),
    ...['dev/', 'home/', 'proc/', 'run/', 'sys/', 'var/log/'].map((path) => folder(path)),
    folder('root/', 0o700),
    text('etc/passwd', passwd),
    text('etc/group', group),
    text('etc/nsswitch.conf', 'hosts: files dns\n'),
    program('bin/busybox', from.busybox),
    ...from.applets.map((applet) => link(`bin/${applet}`, 'busybox')),
    link('usr/bin/env', '../../bin/env'),
  ]);
  // One spec asks which groups the image's own user has.
  const user = 'user-defined-in-image';
  const tools = layer([
    ...[...from.tools].map(([path, data]) => program(path, data)),
    link('bin/nc', '../usr/bin/nc'),
    folder('uploads/'),
    folder(`home/${user}/`),
    text('etc/passwd', `${passwd}${user}:x:1000:1000::/home/${user}:/bin/sh\n`),
    text('etc/group', `${group}${user}:x:1000:\ngroup-defined-in-image:x:50000:${user}\n`),
  ]);
  const agnhost = layer([
    program('agnhost', from.agnhost),
    link('agnhost-2', 'agnhost'),
    program('localhost.crt', from.porter.certificate, 0o644),
    program('localhost.key', from.porter.key, 0o644),
  ]);
  // Setuid: that it raises nobody's privileges is what is tested.
  const nonewprivs = layer([program('usr/local/bin/nnp', from.nonewprivs, 0o6755)]);
  const ports = Object.fromEntries([80, 8080, 8081, 9376, 5000].map((port) => [`${port}/tcp`, {}]));
  return [
    {
      name: suiteImage('agnhost:2.63.0'),
      layers: [base, tools, agnhost],
      run: { Entrypoint: ['/agnhost'], Cmd: ['pause'], ExposedPorts: ports },
    },
    { name: suiteImage('busybox:1.37.0-1'), layers: [base], run: { Cmd: ['sh'] } },
    { name: suiteImage('nonroot:1.5'), layers: [base], run: { Cmd: ['sh'], User: '1234' } },
    { name: suiteImage('nonewprivs:1.4'), layers: [base, nonewprivs], run: { Cmd: ['nnp'] } },
    {
      name: 'registry.k8s.io/pause:3.10.2',
      layers: [layer([program('pause', from.pause)])],
      run: { Entrypoint: ['/pause'], User: '65535:65535' },
    },
  ];
}
