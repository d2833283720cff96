/** What an informer holds: objects by key, and by whatever else was asked for. */
import { keyOf, keyText } from './paths.ts';
import type { KubeObject, ObjectKey } from './types.ts';

export type Indexers<T> = Readonly<Record<string, (object: T) => readonly string[]>>;

export interface Store<T extends KubeObject> {
  get(key: ObjectKey): T | undefined;
  list(): readonly T[];
  keys(): readonly string[];
  byIndex(index: string, value: string): readonly T[];
  put(object: T): void;
  remove(key: string): void;
  readonly size: number;
}

export function createStore<T extends KubeObject>(indexers: Indexers<T> = {}): Store<T> {
  const objects = new Map<string, T>();
  const indexes = new Map(Object.keys(indexers).map((name) => [name, new Map<string, Set<string>>()]));
  /** Under which values an object was filed: an indexer may answer differently when asked again. */
  const filed = new Map<string, [index: string, value: string][]>();

  function unfile(key: string) {
    for (const [index, value] of filed.get(key) ?? []) {
      const keys = indexes.get(index)?.get(value);
      keys?.delete(key);
      if (keys?.size === 0) indexes.get(index)?.delete(value);
    }
    filed.delete(key);
  }

  return {
    get: (key) => objects.get(keyText(key)),
    list: () => [...objects.values()],
    keys: () => [...objects.keys()],
    byIndex(index, value) {
      const values = indexes.get(index);
      if (!values) throw new TypeError(`no index named ${index}`);
      return [...(values.get(value) ?? [])].map((key) => objects.get(key) as T);
    },
    put(object) {
      const key = keyText(keyOf(object));
      unfile(key);
      objects.set(key, object);
      const places: [string, string][] = [];
      for (const [index, valuesOf] of Object.entries(indexers)) {
        for (const value of valuesOf(object)) {
          const values = indexes.get(index)!;
          const keys = values.get(value) ?? new Set();
          values.set(value, keys.add(key));
          places.push([index, value]);
        }
      }
      if (places.length > 0) filed.set(key, places);
    },
    remove(key) {
      unfile(key);
      objects.delete(key);
    },
    get size() {
      return objects.size;
    },
  };
}
