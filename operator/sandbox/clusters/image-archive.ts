/**
 * Container images written here, byte by byte, since a sandbox may not reach any registry: one docker-archive, as
 * `ctr images import` reads it. The same input gives the same bytes.
 */
import { createHash } from 'node:crypto';

export interface Entry {
  /** Without a slash at the front; with one at the end for a folder. */
  readonly path: string;
  readonly mode: number;
  readonly data?: Buffer;
  readonly linkTo?: string;
}

export interface Image {
  readonly name: string;
  /** From the lowest to the highest, as `layer` makes them. Images may share them. */
  readonly layers: readonly Buffer[];
  /** As in an image's config: Entrypoint, Cmd, User, … PATH is set. */
  readonly run: object;
}

const path = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

export function archiveOf(images: readonly Image[]): Buffer {
  const files = new Map<string, Buffer>();
  const manifest = images.map(({ name, layers, run }) => {
    const digests = layers.map(sha256);
    const config = Buffer.from(
      JSON.stringify({
        architecture: process.arch === 'x64' ? 'amd64' : process.arch,
        os: 'linux',
        created: '2020-01-01T00:00:00Z',
        config: { Env: [path], ...run },
        rootfs: { type: 'layers', diff_ids: digests.map((digest) => `sha256:${digest}`) },
      }),
    );
    const configFile = `${sha256(config)}.json`;
    files.set(configFile, config);
    for (const [at, digest] of digests.entries()) files.set(`${digest}/layer.tar`, layers[at]!);
    return { Config: configFile, RepoTags: [name], Layers: digests.map((digest) => `${digest}/layer.tar`) };
  });
  files.set('manifest.json', Buffer.from(JSON.stringify(manifest)));
  return tar([...files].map(([file, data]) => ({ path: file, mode: 0o644, data })));
}

/** Entries in the order of their names, with the folders that they are in. */
export function layer(entries: readonly Entry[]): Buffer {
  const all = new Map<string, Entry>();
  for (const entry of entries) {
    const parts = entry.path.replace(/\/$/, '').split('/');
    for (let depth = 1; depth < parts.length; depth++) {
      const folder = `${parts.slice(0, depth).join('/')}/`;
      if (!all.has(folder)) all.set(folder, { path: folder, mode: 0o755 });
    }
    all.set(entry.path, entry);
  }
  return tar([...all.values()].sort((a, b) => (a.path < b.path ? -1 : 1)));
}

function sha256(data: Buffer): string {
  return createHash('sha256').update(data).digest('hex');
}

/** A POSIX (ustar) archive: everything owned by root, dated 2020. */
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
