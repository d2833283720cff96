/**
 * Lets the operator into the namespaces that have leases, and out again: RoleBindings of its two roles, made and removed as
 * leases come and go. It runs under another account than the operator's, which therefore cannot let itself in anywhere.
 *
 * Level-triggered: now and then, and when a lease or a namespace changes, all bindings are compared with what leases say.
 */
import { managedBy, labels as ownLabels } from '../../api/labels.ts';
import { everyNamespace, type GpuLease } from '../../api/lease.ts';
import { operatorInNamespaceRoleName, operatorTokensRoleName } from '../../core/rights/consumer.ts';
import { closedNamespaces } from '../../core/rights/guards.ts';
import { rbac } from '../../core/rights/rule.ts';
import { type Clock, sleep } from '../../engine/clock.ts';
import { isAlreadyExists, isApiError, isNotFound } from '../../engine/errors.ts';
import { createInformer } from '../../engine/informer.ts';
import { type Cluster, type KubeObject, type Log, resources } from '../../engine/types.ts';

export interface NamespaceRightsOptions {
  readonly cluster: Cluster;
  /** As the API server names the operator. */
  readonly operator: string;
  /** Never let in, beside the usual ones. */
  readonly closed: readonly string[];
  readonly clock: Clock;
  readonly log: Log;
}

interface Binding extends KubeObject {
  roleRef?: { name?: string };
}

const againSeconds = 60;
const retrySeconds = 5;
/** Changes that come together are carried out together. */
const gatherMs = 100;

/** `namespace/role` of all bindings that leases want; `all`: names of the namespaces that there are. */
export function wantedBindings(
  leases: readonly GpuLease[],
  all: readonly string[],
  closed: ReadonlySet<string>,
): ReadonlySet<string> {
  const wanted = new Set<string>();
  const there = new Set(all);
  for (const { metadata, spec } of leases) {
    const named = spec.access?.namespaces ?? [];
    const namespaces = named.includes(everyNamespace) ? all : [metadata.namespace ?? '', ...named];
    for (const namespace of namespaces) {
      if (closed.has(namespace) || !there.has(namespace)) continue;
      wanted.add(`${namespace}/${operatorInNamespaceRoleName}`);
      if (spec.access?.serviceAccountTokens === 'Bound') wanted.add(`${namespace}/${operatorTokensRoleName}`);
    }
  }
  return wanted;
}

export function createNamespaceRights(options: NamespaceRightsOptions): { run(signal: AbortSignal): Promise<void> } {
  const { cluster, clock, log } = options;
  const closed = new Set([...closedNamespaces, ...options.closed]);
  const selector = `${ownLabels.managedBy}=${managedBy}`;
  const leases = createInformer<GpuLease>({ cluster, resource: resources.gpuLeases, log });
  const namespaces = createInformer<KubeObject>({
    cluster,
    resource: resources.namespaces,
    trim: ({ metadata: { name, uid, resourceVersion, deletionTimestamp } }) => ({
      metadata: { name, uid, resourceVersion, deletionTimestamp },
    }),
    log,
  });

  async function compare(signal: AbortSignal): Promise<void> {
    const names = namespaces.list().filter(({ metadata }) => !metadata.deletionTimestamp);
    const wanted = wantedBindings(
      leases.list(),
      names.map(({ metadata }) => metadata.name),
      closed,
    );
    const { items } = await cluster.list<Binding>(resources.roleBindings, { labelSelector: selector }, signal);
    const ours = items.filter(
      ({ metadata, roleRef }) => metadata.name === roleRef?.name && isOurs(roleRef?.name) && metadata.namespace,
    );
    const present = new Set(ours.map(({ metadata }) => `${metadata.namespace}/${metadata.name}`));
    for (const key of wanted) if (!present.has(key)) await bind(key, signal);
    for (const { metadata } of ours) {
      const { namespace, name, uid } = metadata;
      if (wanted.has(`${namespace}/${name}`)) continue;
      await cluster.delete(resources.roleBindings, { namespace, name }, { uid }, signal);
      log.info({ namespace, role: name }, 'no lease is there any more: the operator is let out');
    }
  }

  async function bind(key: string, signal: AbortSignal): Promise<void> {
    const [namespace, name] = key.split('/') as [string, string];
    const object: KubeObject & Record<string, unknown> = {
      apiVersion: `${rbac}/v1`,
      kind: 'RoleBinding',
      metadata: { name, namespace, labels: { [ownLabels.managedBy]: managedBy } },
      roleRef: { apiGroup: rbac, kind: 'ClusterRole', name },
      subjects: [subjectOf(options.operator)],
    };
    try {
      await cluster.create<KubeObject>(resources.roleBindings, object, signal);
      log.info({ namespace, role: name }, 'a lease is there: the operator is let in');
    } catch (error) {
      if (!isAlreadyExists(error) && !isNotFound(error)) throw error;
    }
  }

  return {
    async run(signal) {
      let wake = new AbortController();
      let told: string | undefined;
      const again = () => wake.abort(new Error('something changed'));
      const stops = [leases.onChange(again), namespaces.onChange(again)];
      const work = async () => {
        // Rejects when it is stopped before, which is no failure.
        await Promise.all([leases.waitForSync(signal), namespaces.waitForSync(signal)]).catch(() => undefined);
        while (!signal.aborted) {
          await sleep(clock, gatherMs, signal).catch(() => undefined);
          wake = new AbortController();
          let pauseSeconds = againSeconds;
          try {
            await compare(signal);
            told = undefined;
          } catch (error) {
            if (signal.aborted) return;
            const { message } = error as Error;
            if (message !== told)
              log.warn({ error: message }, 'rights in namespaces could not be compared; trying again');
            told = message;
            // That it is forbidden lasts until a person changes it.
            if (!isApiError(error, 'Forbidden')) pauseSeconds = retrySeconds;
          }
          await sleep(clock, pauseSeconds * 1000, AbortSignal.any([signal, wake.signal])).catch(() => undefined);
        }
      };
      try {
        await Promise.all([leases.run(signal), namespaces.run(signal), work()]);
      } finally {
        for (const stop of stops) stop();
      }
    },
  };
}

const isOurs = (role: string | undefined) => role === operatorInNamespaceRoleName || role === operatorTokensRoleName;

export function subjectOf(user: string): object {
  const [, , namespace, name] = user.startsWith('system:serviceaccount:') ? user.split(':') : [];
  return name === undefined
    ? { kind: 'User', apiGroup: rbac, name: user }
    : { kind: 'ServiceAccount', namespace, name };
}
