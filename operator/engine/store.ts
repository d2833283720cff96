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

/** Keys under one value. Most values have one, and a Set of one takes four times what its key does. */
type Filed = string | Set<string>;

export function createStore<T extends KubeObject>(indexers: Indexers<T> = {}): Store<T> {
  const objects = new Map<string, T>();
  const indexes = new Map(Object.keys(indexers).map((name) => [name, new Map<string, Filed>()]));
  /** Where an object was filed, as index, value, index, value: an indexer may answer differently when asked again. */
  const places = new Map<string, readonly string[]>();

  function file(values: Map<string, Filed>, value: string, key: string) {
    const filed = values.get(value);
    if (filed === undefined || filed === key) values.set(value, key);
    else if (typeof filed === 'string') values.set(value, new Set([filed, key]));
    else filed.add(key);
  }

  function unfile(values: Map<string, Filed>, value: string, key: string) {
    const filed = values.get(value);
    if (filed === key) values.delete(value);
    else if (filed instanceof Set && filed.delete(key) && filed.size === 0) values.delete(value);
  }

  function unfileAll(key: string) {
    const at = places.get(key) ?? [];
    for (let i = 0; i < at.length; i += 2) unfile(indexes.get(at[i]!)!, at[i + 1]!, key);
    places.delete(key);
  }

  function fileAll(key: string, object: T) {
    const at: string[] = [];
    for (const [index, valuesOf] of Object.entries(indexers)) {
      for (const value of valuesOf(object)) {
        file(indexes.get(index)!, value, key);
        at.push(index, value);
      }
    }
    if (at.length > 0) places.set(key, at);
  }

  return {
    get: (key) => objects.get(keyText(key)),
    list: () => [...objects.values()],
    keys: () => [...objects.keys()],
    byIndex(index, value) {
      const values = indexes.get(index);
      if (!values) throw new TypeError(`no index named ${index}`);
      const filed = values.get(value) ?? [];
      const keys = typeof filed === 'string' ? [filed] : [...filed];
      return keys.map((key) => objects.get(key) as T);
    },
    put(object) {
      const key = keyText(keyOf(object));
      unfileAll(key);
      objects.set(key, object);
      fileAll(key, object);
    },
    remove(key) {
      unfileAll(key);
      objects.delete(key);
    },
    get size() {
      return objects.size;
    },
  };
}
