/**
 * The images of a local node, made here from one static program, since a sandbox may not reach any registry.
 *
 * Both hold busybox. `pause` is a shell that waits: it collects the dead of pods that share a process namespace, and ends
 * at once on SIGTERM, as the real pause does.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { archiveOf, type Entry, layer } from './image-archive.ts';

/** What the pods of a sandbox may name. Runs as any user; has sh, cat, nc, httpd, wget and busybox's other applets. */
export const TOOLS_IMAGE = 'gpulease.local/busybox:1';
export const PAUSE_IMAGE = 'gpulease.local/pause:1';

/** Writes both images as one docker-archive, which `ctr images import` reads. */
export function writeImages(file: string, busyboxPath: string): void {
  const base: Entry[] = [
    { path: 'bin/busybox', mode: 0o755, data: readFileSync(busyboxPath) },
    { path: 'bin/sh', mode: 0o777, linkTo: 'busybox' },
  ];
  const tools: Entry[] = [
    ...base,
    ...appletsOf(busyboxPath).map((applet) => ({ path: `bin/${applet}`, mode: 0o777, linkTo: 'busybox' })),
    {
      path: 'etc/passwd',
      mode: 0o644,
      data: Buffer.from('root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n'),
    },
    { path: 'etc/group', mode: 0o644, data: Buffer.from('root:x:0:\nnobody:x:65534:\n') },
    { path: 'root/', mode: 0o755 },
    { path: 'tmp/', mode: 0o1777 },
    { path: 'usr/bin/env', mode: 0o777, linkTo: '/bin/busybox' },
    { path: 'var/tmp/', mode: 0o1777 },
  ];
  const waiting = 'trap "exit 0" TERM INT; while :; do sleep 2147483 & wait $!; done';
  const images = [
    { name: PAUSE_IMAGE, layers: [layer(base)], run: { Entrypoint: ['/bin/busybox', 'sh', '-c', waiting] } },
    { name: TOOLS_IMAGE, layers: [layer(tools)], run: { Cmd: ['/bin/sh'] } },
  ];
  writeFileSync(file, archiveOf(images));
}

/** What a busybox can do, by name. */
export const appletsOf = (busyboxPath: string): string[] =>
  execFileSync(busyboxPath, ['--list'], { encoding: 'utf8' })
    .split('\n')
    .filter((applet) => /^[\w[.-]+$/.test(applet) && applet !== 'busybox');
