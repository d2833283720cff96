/** A map that forgets what was set longest ago. For hints only: nothing may depend on what it still knows. */
export interface BoundedMap<K, V> {
  get(key: K): V | undefined;
  set(key: K, value: V): void;
  delete(key: K): void;
}

export function boundedMap<K, V>(most: number): BoundedMap<K, V> {
  const map = new Map<K, V>();
  return {
    get: (key) => map.get(key),
    set(key, value) {
      map.delete(key);
      map.set(key, value);
      if (map.size > most) map.delete(map.keys().next().value as K);
    },
    delete: (key) => void map.delete(key),
  };
}
