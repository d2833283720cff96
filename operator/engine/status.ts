/**
 * Writing status and finalizers, so that an unchanged world writes nothing and concurrent writers lose nothing.
 *
 * Status goes by server-side apply, one field manager per controller: a merge patch would lose conditions that others
 * wrote meanwhile.
 */
import { sameJson } from './equal.ts';
import { ApiError, isConflict, isNotFound } from './errors.ts';
import { keyOf, keyText } from './paths.ts';
import type { Cluster, KubeObject, Resource } from './types.ts';

export interface StatusTarget<T extends KubeObject> {
  readonly cluster: Cluster;
  readonly resource: Resource;
  /** As last seen. Compared with, and never written back. */
  readonly object: T & { readonly status?: unknown };
  /** One per controller. */
  readonly fieldManager: string;
}

/**
 * Makes the status what `status` says: fields that this manager applied before and left out now disappear; those of other
 * managers stay. Returns what the server stored, or undefined when nothing was to be written.
 *
 * A status decided for one object never lands on its successor of the same name: that is a Conflict. The UID alone would
 * not see to it, as the status of custom kinds is written without a look at it. So the version goes along; where that one
 * has passed, the object is read again, and written to if it is still the same one.
 */
export async function applyStatus<T extends KubeObject>(
  target: StatusTarget<T>,
  status: object,
  signal?: AbortSignal,
): Promise<T | undefined> {
  const { cluster, resource, fieldManager } = target;
  const { name, namespace, uid } = target.object.metadata;
  let seen = target.object;
  for (let attempt = 1; ; attempt++) {
    if (sameJson(seen.status, status)) return undefined;
    const metadata = { name, namespace, uid, resourceVersion: seen.metadata.resourceVersion };
    try {
      return await cluster.apply<T>(
        resource,
        { metadata, status } as unknown as T,
        { fieldManager, subresource: 'status' },
        signal,
      );
    } catch (error) {
      if (!isConflict(error) || attempt === 5) throw error;
      const fresh = await cluster.get<T>(resource, keyOf(seen), signal);
      if (fresh?.metadata.uid !== uid) throw replaced(resource, seen);
      seen = fresh!;
    }
  }
}

function replaced(resource: Resource, object: KubeObject): ApiError {
  const message = `${resource.plural} ${keyText(keyOf(object))} is not the one that this was decided for`;
  return new ApiError({ code: 409, reason: 'Conflict', message });
}

/** Safe to repeat. Resolves with the object that has it, or undefined when the object is gone or being deleted. */
export function addFinalizer<T extends KubeObject>(
  cluster: Cluster,
  resource: Resource,
  object: T,
  finalizer: string,
  signal?: AbortSignal,
): Promise<T | undefined> {
  return changeFinalizers(
    cluster,
    resource,
    object,
    (present) => (present.includes(finalizer) ? present : [...present, finalizer]),
    // The API server refuses new finalizers on an object that is being deleted.
    (seen) => seen.metadata.deletionTimestamp === undefined,
    signal,
  );
}

/** Safe to repeat. Resolves with the object as it is without it, or undefined when it is gone. */
export function removeFinalizer<T extends KubeObject>(
  cluster: Cluster,
  resource: Resource,
  object: T,
  finalizer: string,
  signal?: AbortSignal,
): Promise<T | undefined> {
  return changeFinalizers(
    cluster,
    resource,
    object,
    (present) => present.filter((name) => name !== finalizer),
    () => true,
    signal,
  );
}

/**
 * A merge patch with the resourceVersion in it, rather than a JSON patch with a test: the list is replaced only if the
 * object is the one that was read, and a lost race is a Conflict, where a failed test is an Invalid like any other.
 */
async function changeFinalizers<T extends KubeObject>(
  cluster: Cluster,
  resource: Resource,
  object: T,
  change: (present: readonly string[]) => readonly string[],
  allowed: (seen: T) => boolean,
  signal?: AbortSignal,
): Promise<T | undefined> {
  const { uid } = object.metadata;
  let seen: T | undefined = object;
  for (let attempt = 1; ; attempt++) {
    if (!seen || seen.metadata.uid !== uid || !allowed(seen)) return undefined;
    const present: readonly string[] = seen.metadata.finalizers ?? [];
    const wanted = change(present);
    if (sameJson(present, wanted)) return seen;
    const { resourceVersion } = seen.metadata;
    try {
      const metadata = { uid, resourceVersion, finalizers: wanted };
      return await cluster.patch<T>(resource, keyOf(seen), { metadata }, { type: 'merge' }, signal);
    } catch (error) {
      if (isNotFound(error)) return undefined;
      if (!isConflict(error) || attempt === 5) throw error;
      seen = await cluster.get<T>(resource, keyOf(object), signal);
    }
  }
}
