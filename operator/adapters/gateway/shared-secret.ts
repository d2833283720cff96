/** Bytes that all replicas share: made by whoever is first, read by all others. */
import { randomBytes } from 'node:crypto';
import { labels, managedBy } from '../../api/labels.ts';
import { isAlreadyExists } from '../../engine/errors.ts';
import { type Cluster, type KubeObject, resources } from '../../engine/types.ts';
import type { ServingCertificate } from './certificate.ts';

interface StoredSecret extends KubeObject {
  type?: string;
  data?: Record<string, string>;
}

/** What is stored under the name; `make` is asked when nothing is. */
export async function sharedSecret(
  cluster: Cluster,
  key: { readonly namespace: string; readonly name: string },
  make: () => Promise<Record<string, Buffer>> | Record<string, Buffer>,
  signal?: AbortSignal,
): Promise<Record<string, Buffer>> {
  for (;;) {
    const stored = await cluster.get<StoredSecret>(resources.secrets, key, signal);
    if (stored !== undefined) {
      return Object.fromEntries(
        Object.entries(stored.data ?? {}).map(([name, text]) => [name, Buffer.from(text, 'base64')]),
      );
    }
    const made = await make();
    const data = Object.fromEntries(Object.entries(made).map(([name, bytes]) => [name, bytes.toString('base64')]));
    const secret: StoredSecret = {
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: { ...key, labels: { [labels.managedBy]: managedBy } },
      type: 'Opaque',
      data,
    };
    try {
      await cluster.create(resources.secrets, secret, signal);
      return made;
    } catch (error) {
      // Another replica was faster: take what it made.
      if (!isAlreadyExists(error)) throw error;
    }
  }
}

export const randomKey = (): Buffer => randomBytes(32);

/** A certificate with its key, shared in that way. */
export async function sharedPair(
  cluster: Cluster,
  key: { readonly namespace: string; readonly name: string },
  make: () => Promise<ServingCertificate>,
  signal?: AbortSignal,
): Promise<ServingCertificate> {
  const found = await sharedSecret(
    cluster,
    key,
    async () => {
      const made = await make();
      return { 'tls.crt': Buffer.from(made.cert), 'tls.key': Buffer.from(made.key) };
    },
    signal,
  );
  return { cert: found['tls.crt']?.toString('utf8') ?? '', key: found['tls.key']?.toString('utf8') ?? '' };
}
