/** A store that outlives a killed process: one file, replaced whole, with its version inside. */
import { readFile, rename, writeFile } from 'node:fs/promises';
import { type Store, StoreConflict } from '../../operator/adapters/chain/store.ts';

export function fileStore<T>(file: string): Store<T> {
  const read = async (): Promise<{ value: T | undefined; version: string }> => {
    try {
      return JSON.parse(await readFile(file, 'utf8'));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { value: undefined, version: '0' };
      throw error;
    }
  };
  return {
    load: read,
    async save(value, version) {
      const { version: current } = await read();
      if (current !== version) throw new StoreConflict(`version ${version} is stale, ${current} is current`);
      const next = String(Number(version) + 1);
      await writeFile(`${file}.part`, JSON.stringify({ value, version: next }));
      await rename(`${file}.part`, file);
      return next;
    },
  };
}
