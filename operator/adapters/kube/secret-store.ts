/**
 * A value kept in one Secret, written by compare-and-swap on its resourceVersion. Two replicas may share it: of two that
 * write at the same time, one hears StoreConflict.
 */
import { isAlreadyExists, isConflict, isNotFound } from '../../engine/errors.ts';
import { type Cluster, type KubeObject, resources } from '../../engine/types.ts';
import { type Store, StoreConflict } from '../chain/store.ts';

export interface SecretStoreOptions<T> {
  readonly cluster: Cluster;
  readonly namespace: string;
  readonly name: string;
  /** Put on the Secret when it is made: whose it is, what it belongs to. */
  readonly labels?: Readonly<Record<string, string>>;
  readonly ownerReferences?: KubeObject['metadata']['ownerReferences'];
  /** Checks what was read; throws when it cannot be used. Left out: it is taken as it is. */
  readonly parse?: (value: unknown) => T;
  /** Of JSON. etcd takes 1.5 MiB an object, of which base64 eats a quarter: 900 KiB by default. */
  readonly maxBytes?: number;
}

interface Secret extends KubeObject {
  type?: string;
  data?: Record<string, string>;
}

const field = 'value.json';
/** The version of what was never written. */
const never = '';

/** Someone else's Secret of this name, or one that was damaged: a person has to look. */
export class UnreadableSecret extends Error {
  override readonly name = 'UnreadableSecret';
  readonly terminal = true;
}

export function createSecretStore<T>(options: SecretStoreOptions<T>): Store<T> {
  const { cluster, namespace, name } = options;
  const key = { namespace, name };
  const maxBytes = options.maxBytes ?? 900 * 1024;

  return {
    async load(signal) {
      const secret = await cluster.get<Secret>(resources.secrets, key, signal);
      if (!secret) return { value: undefined, version: never };
      const encoded = secret.data?.[field];
      if (encoded === undefined)
        throw new UnreadableSecret(`Secret ${namespace}/${name} has no ${field}: it is not ours, or was damaged`);
      const version = secret.metadata.resourceVersion ?? never;
      try {
        const value: unknown = JSON.parse(Buffer.from(encoded, 'base64').toString('utf8'));
        return { value: options.parse ? options.parse(value) : (value as T), version };
      } catch {
        // The parser's words quote what it read, and that is a secret.
        throw new UnreadableSecret(`Secret ${namespace}/${name}: what its ${field} holds cannot be read`);
      }
    },

    async save(value, version, signal) {
      const json = Buffer.from(JSON.stringify(value));
      if (json.length > maxBytes)
        throw new RangeError(
          `Secret ${namespace}/${name}: ${json.length} bytes are more than the ${maxBytes} it may hold`,
        );
      const data = { [field]: json.toString('base64') };
      try {
        const stored =
          version === never
            ? await cluster.create<Secret>(
                resources.secrets,
                {
                  metadata: { ...key, labels: { ...options.labels }, ownerReferences: options.ownerReferences },
                  type: 'Opaque',
                  data,
                },
                signal,
              )
            : // A merge patch, so that labels and annotations that people add survive.
              await cluster.patch<Secret>(
                resources.secrets,
                key,
                { metadata: { resourceVersion: version }, data },
                { type: 'merge' },
                signal,
              );
        return stored.metadata.resourceVersion ?? never;
      } catch (error) {
        if (isConflict(error) || isAlreadyExists(error) || isNotFound(error))
          throw new StoreConflict(`Secret ${namespace}/${name} was changed by somebody else`);
        throw error;
      }
    },
  };
}
