/** Makes tenants, acts in them, and takes them away. Everything here may be repeated. */
import { annotations, labels as ownLabels } from '../../api/labels.ts';
import type { Hex32 } from '../../api/messages.ts';
import { tenantNamespace } from '../../core/allocation/record.ts';
import { tenantAccount, tenantRole, tenantRoleName } from '../../core/allocation/rights.ts';
import { escrowOfTenant, type TenantLease, type TenantOptions, tenantObjects } from '../../core/allocation/tenant.ts';
import { sameJson } from '../../engine/equal.ts';
import { isConflict, isNotFound } from '../../engine/errors.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../../engine/types.ts';

export const fieldManager = 'gpulease-gateway';

interface TenantPod extends KubeObject {
  spec?: { terminationGracePeriodSeconds?: number; nodeName?: string };
}

/** The longest that a tenant's pod may take to end once its lease is over. */
const endingGraceSeconds = 30;
/** A pod that is still there so long after its grace has a kubelet that does not answer. */
const silentKubeletSeconds = 60;

/** Kubernetes gives tokens for no less than ten minutes. */
const tokenSeconds = 600;
const tokenMarginSeconds = 120;
const maxTokens = 10_000;

export interface Tenant {
  readonly namespace: string;
  /** Undefined: its namespace does not tell. */
  readonly escrow?: Pick<TenantLease, 'chainId' | 'escrow' | 'leaseId'>;
  readonly createdAt: Date;
}

export interface Tenants {
  make(lease: TenantLease, signal?: AbortSignal): Promise<void>;
  /** A short-lived token of the tenant's account. */
  token(leaseId: Hex32, signal?: AbortSignal): Promise<string>;
  /** After the API server refused one. */
  forgetToken(leaseId: Hex32): void;
  /** Asks all pods to end; true once none is left and the namespace is going. */
  tearDown(leaseId: Hex32, nodeReady: boolean, signal?: AbortSignal): Promise<boolean>;
  /** All that exist and are not going. */
  list(signal?: AbortSignal): Promise<readonly Tenant[]>;
  /** Whether it may run pods on this node: by what its namespace says, and by its pods. */
  place(leaseId: Hex32, node: string, signal?: AbortSignal): Promise<'here' | 'elsewhere' | 'gone'>;
  removeNamespace(name: string, signal?: AbortSignal): Promise<void>;
}

export function createTenants(options: {
  readonly cluster: Cluster;
  readonly now: () => Date;
  readonly log: Log;
  readonly tenant: TenantOptions;
}): Tenants {
  const { cluster, now, log } = options;
  const tokens = new Map<string, { token: string; until: number }>();
  const minting = new Map<string, Promise<string>>();

  async function mint(leaseId: Hex32, signal?: AbortSignal): Promise<string> {
    const answer = await cluster.createSubresource<{ status?: { token?: string; expirationTimestamp?: string } }>(
      resources.serviceAccounts,
      { namespace: tenantNamespace(leaseId), name: tenantAccount },
      'token',
      {
        apiVersion: 'authentication.k8s.io/v1',
        kind: 'TokenRequest',
        spec: { expirationSeconds: tokenSeconds },
      },
      signal,
    );
    const token = answer.status?.token;
    if (token === undefined || token === '') throw new Error('the API server answered a token request without a token');
    const expires = Date.parse(answer.status?.expirationTimestamp ?? '');
    const until = (Number.isNaN(expires) ? now().getTime() + tokenSeconds * 1000 : expires) - tokenMarginSeconds * 1000;
    // The oldest goes first; a tenant that still needs it gets another.
    if (tokens.size >= maxTokens) tokens.delete(tokens.keys().next().value as string);
    tokens.set(leaseId, { token, until });
    return token;
  }

  let roleIsThere = false;
  /** The role that all tenants share. The chart brings it; where we may, we make it good ourselves. */
  async function ensureRole(signal?: AbortSignal): Promise<void> {
    if (roleIsThere) return;
    const stored = await cluster.get<KubeObject & { rules?: unknown }>(
      resources.clusterRoles,
      { name: tenantRoleName },
      signal,
    );
    if (!sameJson(stored?.rules, tenantRole.rules)) {
      await cluster.apply<KubeObject>(resources.clusterRoles, tenantRole as KubeObject, { fieldManager }, signal);
    }
    roleIsThere = true;
  }

  return {
    async make(lease, signal) {
      await ensureRole(signal);
      // One after the other: the namespace must be there before what is in it, the account before its binding.
      for (const { resource, object } of tenantObjects(lease, options.tenant)) {
        await cluster.apply<KubeObject>(resources[resource], object as KubeObject, { fieldManager }, signal);
      }
    },

    async token(leaseId, signal) {
      const known = tokens.get(leaseId);
      if (known !== undefined && now().getTime() < known.until) return known.token;
      const running = minting.get(leaseId);
      if (running !== undefined) return running;
      // Not the first caller's signal: others wait for the same token.
      const minted = mint(leaseId).finally(() => minting.delete(leaseId));
      minting.set(leaseId, minted);
      signal?.throwIfAborted();
      return minted;
    },

    forgetToken(leaseId) {
      tokens.delete(leaseId);
    },

    async tearDown(leaseId, nodeReady, signal) {
      const namespace = tenantNamespace(leaseId);
      tokens.delete(leaseId);
      const { items } = await cluster.list<TenantPod>(resources.pods, { namespace }, signal);
      for (const pod of items) {
        const { name, uid, deletionTimestamp } = pod.metadata;
        const own = pod.spec?.terminationGracePeriodSeconds ?? endingGraceSeconds;
        if (deletionTimestamp === undefined) {
          await endPod(name, uid, Math.min(own, endingGraceSeconds));
        } else {
          // deletionTimestamp is when the grace ends, as the API server has it.
          const lateSeconds = (now().getTime() - Date.parse(deletionTimestamp)) / 1000;
          const long = (pod.metadata.deletionGracePeriodSeconds ?? 0) > endingGraceSeconds;
          if (long) await endPod(name, uid, endingGraceSeconds);
          else if (lateSeconds > silentKubeletSeconds && !nodeReady) {
            log.warn({ namespace, pod: name }, 'a pod is removed although its node does not say that it has ended');
            await endPod(name, uid, 0);
          }
        }
      }
      if (items.length > 0) return false;
      await cluster.delete(resources.namespaces, { name: namespace }, {}, signal);
      return true;

      async function endPod(name: string, uid: string | undefined, gracePeriodSeconds: number): Promise<void> {
        try {
          await cluster.delete(resources.pods, { namespace, name }, { gracePeriodSeconds, uid }, signal);
        } catch (error) {
          // Another pod of that name by now: seen at the next look.
          if (!isConflict(error) && !isNotFound(error)) throw error;
        }
      }
    },

    async list(signal) {
      const { items } = await cluster.list<KubeObject>(
        resources.namespaces,
        { labelSelector: `${ownLabels.tenant}=true` },
        signal,
      );
      return items
        .filter(({ metadata }) => metadata.deletionTimestamp === undefined)
        .map(({ metadata }) => ({
          namespace: metadata.name,
          escrow: escrowOfTenant(metadata.annotations),
          createdAt: new Date(metadata.creationTimestamp ?? 0),
        }));
    },

    async place(leaseId, node, signal) {
      const name = tenantNamespace(leaseId);
      const namespace = await cluster.get<KubeObject>(resources.namespaces, { name }, signal);
      if (namespace === undefined) return 'gone';
      if ((namespace.metadata.annotations?.[annotations.tenantNode] ?? node) === node) return 'here';
      const { items } = await cluster.list<TenantPod>(resources.pods, { namespace: name }, signal);
      return items.some(({ spec }) => spec?.nodeName === node) ? 'here' : 'elsewhere';
    },

    async removeNamespace(name, signal) {
      await cluster.delete(resources.namespaces, { name }, {}, signal);
    },
  };
}
