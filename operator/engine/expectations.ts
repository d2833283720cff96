/**
 * Reading one's own writes. A cache is behind by moments; a reconciler that runs in them must know that what it sees is
 * from before its own write, or it writes twice.
 *
 * resourceVersions have no order, so "the cache is past my write" is learnt by seeing that very version go by. When it
 * cannot be seen (a list skipped over it), the expectation ends by time.
 */
import type { Clock } from './clock.ts';
import { keyOf, keyText } from './paths.ts';
import type { Informer, KubeObject, ObjectKey } from './types.ts';

export interface Expectations {
  /** Follows an informer, to learn which versions have gone by. Returns the way to stop. */
  follow<T extends KubeObject>(informer: Informer<T>): () => void;
  /** What the server answered to our create, replace, patch or apply. */
  wrote(resource: { readonly plural: string }, object: KubeObject): void;
  /** We deleted this object. */
  deleted(resource: { readonly plural: string }, object: KubeObject): void;
  /** True when the cache shows all that we wrote to this key, or has had the time to. */
  met(resource: { readonly plural: string }, key: ObjectKey): boolean;
}

/** Versions remembered for writes whose answer arrives after their event. */
const rememberedVersions = 4096;
const mostExpectations = 100_000;

export function createExpectations(options: { clock: Clock; timeoutSeconds?: number }): Expectations {
  const { clock } = options;
  const timeoutMs = (options.timeoutSeconds ?? 10) * 1000;
  const pending = new Map<string, { version: string; untilMs: number }>();
  const seen = new Set<string>();

  const place = (plural: string, key: ObjectKey) => `${plural}/${keyText(key)}`;
  const gone = (uid: string | undefined) => `gone ${uid}`;

  function remember(version: string) {
    seen.add(version);
    if (seen.size > rememberedVersions) seen.delete(seen.values().next().value!);
  }

  function expect(at: string, version: string) {
    if (seen.has(version)) return void pending.delete(at);
    pending.delete(at);
    pending.set(at, { version, untilMs: clock.monotonicMs() + timeoutMs });
    if (pending.size > mostExpectations) pending.delete(pending.keys().next().value!);
  }

  return {
    follow(informer) {
      const { plural } = informer.resource;
      return informer.onChange(({ type, object }) => {
        const at = place(plural, keyOf(object));
        const version = type === 'deleted' ? gone(object.metadata.uid) : `${at}@${object.metadata.resourceVersion}`;
        remember(version);
        const waited = pending.get(at);
        // A deleted object will never show a version that we wrote to it.
        if (waited && (waited.version === version || type === 'deleted')) pending.delete(at);
      });
    },
    wrote(resource, object) {
      const at = place(resource.plural, keyOf(object));
      expect(at, `${at}@${object.metadata.resourceVersion}`);
    },
    deleted(resource, object) {
      expect(place(resource.plural, keyOf(object)), gone(object.metadata.uid));
    },
    met(resource, key) {
      const at = place(resource.plural, key);
      const waited = pending.get(at);
      if (!waited) return true;
      if (clock.monotonicMs() < waited.untilMs) return false;
      pending.delete(at);
      return true;
    },
  };
}
