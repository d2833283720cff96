/**
 * Which pod of a tenant calls. Pods of tenants are not watched (stock.ts), and few leases name Services, so their addresses are
 * asked for when somebody calls. What was heard is good for a moment: an address may be another tenant's later.
 */
import type { Clock } from '../../engine/clock.ts';
import { type Cluster, type KubeObject, resources } from '../../engine/types.ts';

type Addressed = KubeObject & {
  readonly spec?: { readonly hostNetwork?: boolean };
  readonly status?: { readonly phase?: string; readonly podIPs?: readonly { readonly ip?: string }[] };
};

interface Heard {
  readonly atMs: number;
  readonly addresses: Promise<ReadonlySet<string>>;
}

const goodForMs = 1000;

export interface TenantAddresses {
  /** Whether a pod of this namespace that has not ended has this address, for itself alone. */
  has(namespace: string, address: string, signal?: AbortSignal): Promise<boolean>;
}

export function createTenantAddresses(cluster: Cluster, clock: Clock): TenantAddresses {
  const heard = new Map<string, Heard>();

  async function ask(namespace: string): Promise<ReadonlySet<string>> {
    const { items } = await cluster.list<Addressed>(resources.pods, { namespace, trim: onlyAddresses });
    return new Set(items.flatMap(({ status }) => (status?.podIPs ?? []).flatMap(({ ip }) => ip ?? [])));
  }

  /** One question at a time for a namespace, however many call at once. */
  function addressesOf(namespace: string): Promise<ReadonlySet<string>> {
    const now = clock.monotonicMs();
    for (const [name, { atMs }] of heard) if (now - atMs >= goodForMs) heard.delete(name);
    const known = heard.get(namespace);
    if (known) return known.addresses;
    const addresses = ask(namespace);
    heard.set(namespace, { atMs: now, addresses });
    addresses.catch(() => heard.delete(namespace));
    return addresses;
  }

  return {
    async has(namespace, address, signal) {
      const addresses = await addressesOf(namespace);
      signal?.throwIfAborted();
      return addresses.has(address);
    },
  };
}

/** A pod on its host's network has an address that is not its own. */
function onlyAddresses({ metadata: { name, namespace }, spec, status }: Addressed): Addressed {
  const has = spec?.hostNetwork !== true && status?.phase !== 'Succeeded' && status?.phase !== 'Failed';
  return { metadata: { name, namespace }, ...(has ? { status: { podIPs: status?.podIPs } } : {}) };
}
