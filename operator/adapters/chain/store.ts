/**
 * One value that outlives the process, written by compare-and-swap: a writer whose version is stale loses, so two writers
 * never both believe that they wrote. A Kubernetes Secret with its resourceVersion is one.
 */
export interface Store<T> {
  /** `value` is undefined before the first save. */
  load(signal?: AbortSignal): Promise<{ readonly value: T | undefined; readonly version: string }>;
  /** Gives the new version. Throws StoreConflict when `version` is not the newest; after any other error nothing is known. */
  save(value: T, version: string, signal?: AbortSignal): Promise<string>;
}

/** Somebody else wrote since we read. Read again. */
export class StoreConflict extends Error {
  override readonly name = 'StoreConflict';
  readonly terminal = false;
}

/** For tests and one-off commands: lives as long as the process. */
export function memoryStore<T>(initial?: T): Store<T> {
  // Kept as text, so that what is read back is a copy, as from any real store.
  let text = initial === undefined ? undefined : JSON.stringify(initial);
  let version = 0;
  return {
    async load() {
      return { value: text === undefined ? undefined : (JSON.parse(text) as T), version: String(version) };
    },
    async save(value, expected) {
      if (expected !== String(version)) throw new StoreConflict(`version ${expected} is stale, ${version} is current`);
      text = JSON.stringify(value);
      version += 1;
      return String(version);
    },
  };
}
