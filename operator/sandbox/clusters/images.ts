/**
 * The images of a local node, made here from one static program, since a sandbox may not reach any registry.
 *
 * Both hold busybox. `pause` is a shell that waits: it collects the dead of pods that share a process namespace, and ends
 * at once on SIGTERM, as the real pause does.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';

/** What the pods of a sandbox may name. Runs as any user; has sh, cat, nc, httpd, wget and busybox's other applets. */
export const TOOLS_IMAGE = 'gpulease.local/busybox:1';
export const PAUSE_IMAGE = 'gpulease.local/pause:1';

interface Entry {
  readonly path: string;
  readonly mode: number;
  readonly data?: Buffer;
  readonly linkTo?: string;
}

/** Writes both images as one docker-archive, which `ctr images import` reads. */
export function writeImages(file: string, busyboxPath: string): void {
  const busybox = readFileSync(busyboxPath);
  const applets = execFileSync(busyboxPath, ['--list'], { encoding: 'utf8' })
    .split('\n')
    .filter((applet) => /^[\w[.-]+$/.test(applet) && applet !== 'busybox');
  const base: Entry[] = [
    { path: 'bin/', mode: 0o755 },
    { path: 'bin/busybox', mode: 0o755, data: busybox },
    { path: 'bin/sh', mode: 0o777, linkTo: 'busybox' },
  ];
  const tools: Entry[] = [
    ...base,
    ...applets
      .filter((applet) => applet !== 'sh')
      .map((applet) => ({ path: `bin/${applet}`, mode: 0o777, linkTo: 'busybox' })),
    { path: 'etc/', mode: 0o755 },
    {
      path: 'etc/passwd',
      mode: 0o644,
      data: Buffer.from('root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n'),
    },
    { path: 'etc/group', mode: 0o644, data: Buffer.from('root:x:0:\nnobody:x:65534:\n') },
    { path: 'root/', mode: 0o755 },
    { path: 'tmp/', mode: 0o1777 },
    { path: 'usr/', mode: 0o755 },
    { path: 'usr/bin/', mode: 0o755 },
    { path: 'usr/bin/env', mode: 0o777, linkTo: '/bin/busybox' },
    { path: 'var/', mode: 0o755 },
    { path: 'var/tmp/', mode: 0o1777 },
  ];
  const waiting = 'trap "exit 0" TERM INT; while :; do sleep 2147483 & wait $!; done';
  const images = [
    image(PAUSE_IMAGE, base, { Entrypoint: ['/bin/busybox', 'sh', '-c', waiting] }),
    image(TOOLS_IMAGE, tools, { Cmd: ['/bin/sh'] }),
  ];
  writeFileSync(
    file,
    tar([
      { path: 'manifest.json', mode: 0o644, data: Buffer.from(JSON.stringify(images.map((i) => i.manifest))) },
      ...images.flatMap((i) => i.entries),
    ]),
  );
}

function image(name: string, content: readonly Entry[], run: object): { manifest: object; entries: Entry[] } {
  const layer = tar(content);
  const diff = sha256(layer);
  const config = Buffer.from(
    JSON.stringify({
      architecture: process.arch === 'x64' ? 'amd64' : process.arch,
      os: 'linux',
      created: '2020-01-01T00:00:00Z',
      config: { Env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'], ...run },
      rootfs: { type: 'layers', diff_ids: [`sha256:${diff}`] },
    }),
  );
  const configFile = `${sha256(config)}.json`;
  return {
    manifest: { Config: configFile, RepoTags: [name], Layers: [`${diff}/layer.tar`] },
    entries: [
      { path: configFile, mode: 0o644, data: config },
      { path: `${diff}/layer.tar`, mode: 0o644, data: layer },
    ],
  };
}

function sha256(data: Buffer): string {
  return createHash('sha256').update(data).digest('hex');
}

/** A POSIX (ustar) archive: everything owned by root, dated 2020, so that the same input gives the same image. */
export function tar(entries: readonly Entry[]): Buffer {
  const blocks: Buffer[] = [];
  for (const { path, mode, data, linkTo } of entries) {
    if (Buffer.byteLength(path) > 100 || Buffer.byteLength(linkTo ?? '') > 100)
      throw new Error(`name too long for a tar header: ${path}`);
    const header = Buffer.alloc(512);
    const octal = (value: number, at: number, width: number) =>
      header.write(`${value.toString(8).padStart(width - 1, '0')}\0`, at);
    header.write(path, 0);
    octal(mode, 100, 8);
    octal(0, 108, 8);
    octal(0, 116, 8);
    octal(data?.length ?? 0, 124, 12);
    octal(1577836800, 136, 12);
    header.fill(' ', 148, 156);
    header.write(linkTo !== undefined ? '2' : path.endsWith('/') ? '5' : '0', 156);
    header.write(linkTo ?? '', 157);
    header.write('ustar\x0000', 257, 'latin1');
    let sum = 0;
    for (const byte of header) sum += byte;
    header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
    blocks.push(header);
    if (data) blocks.push(data, Buffer.alloc((512 - (data.length % 512)) % 512));
  }
  blocks.push(Buffer.alloc(1024));
  return Buffer.concat(blocks);
}
