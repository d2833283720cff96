/** An image of anvil, for a chain that runs in a cluster: the program that npm brought and the C library that it loads. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { findAnvil } from '../chain/anvil.ts';
import { archiveOf, layer } from '../clusters/image-archive.ts';
import { librariesOf, unpackPackages } from '../conformance/debian.ts';
import type { Report } from '../processes.ts';
import { keepInCache, platform } from '../tools/tools.ts';

export const ANVIL_IMAGE = 'gpulease.local/anvil:1';

/** An archive of it, made once a machine. */
export async function anvilArchive(report: Report, signal?: AbortSignal): Promise<string> {
  const what = 'an image of anvil';
  const folder = await keepInCache(
    { what, cacheKey: `anvil-image-1.7.1-1-${platform}` },
    { report },
    async (out) => {
      report(`making ${what}`);
      const program = findAnvil();
      const packages = join(out, 'packages');
      await unpackPackages(['libc6', 'libgcc-s1'], packages, signal);
      const files = [...(await librariesOf(program, packages, signal))].map(([path, from]) => ({
        path,
        mode: 0o755,
        data: readFileSync(from),
      }));
      const entries = [
        ...files,
        { path: 'usr/local/bin/anvil', mode: 0o755, data: readFileSync(program) },
        { path: 'tmp/', mode: 0o1777 },
      ];
      const image = {
        name: ANVIL_IMAGE,
        layers: [layer(entries)],
        run: { Entrypoint: ['/usr/local/bin/anvil'], User: '65532' },
      };
      writeFileSync(join(out, 'image.tar'), archiveOf([image]));
    },
    signal,
  );
  return join(folder, 'image.tar');
}
