/**
 * Ends what runs before gpulease is uninstalled, and waits until all of it is settled: the charts run it before they are
 * deleted. It asks for nothing that the running programs do not do by themselves; they must be up.
 *
 * When all is settled it stops the programs, since they would put back what it then takes away: finalizers, which nobody else
 * would ever remove, and what they made beside the chart.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { accessName } from '../api/access.ts';
import { finalizers, labels } from '../api/labels.ts';
import type { GpuLease } from '../api/lease.ts';
import { receiptSelector } from '../controllers/consumer/receipts.ts';
import { loadRecords } from '../controllers/consumer/records.ts';
import { ledgerSelector } from '../controllers/provider/ledgers.ts';
import { type RecordSecret, recordOfSecret, recordSelector } from '../controllers/provider/records.ts';
import { evictionGuard } from '../core/node/eviction.ts';
import * as consumer from '../core/uninstall/consumer.ts';
import * as provider from '../core/uninstall/provider.ts';
import { systemClock } from '../engine/clock.ts';
import { connectCluster } from '../engine/cluster.ts';
import { isApiError, isConflict, isNotFound } from '../engine/errors.ts';
import { removeFinalizer } from '../engine/status.ts';
import { type Cluster, type KubeObject, type ListOptions, type Resource, resources } from '../engine/types.ts';
import { choice, integer, type Option, parseOptions, text, UsageError } from './options.ts';

const usage = `
Ends all leases of a cluster before gpulease is uninstalled, waits until they are settled, and takes away what would be left.

  drain consumer [options]     leases that this cluster has with providers
  drain provider [options]     leases that consumers have here: no new ones are taken, those that run are told and drained

Exit status: 0 nothing is left; 1 something is, and it is said what; 2 the command was not understood.
`;

const switchOption = (description: string): Option<boolean> => ({ description, parse: (t) => t === 'true' });

export const drainOptions = {
  kubeconfig: text('Kubeconfig of the cluster; "in-cluster" for a pod\'s own service account.', 'FILE', 'in-cluster'),
  namespace: text('Where gpulease runs.', 'NAME', 'gpulease-system'),
  onOpenLeases: choice(
    'What is done while leases are open: they are ended, or nothing is changed.',
    ['End', 'Refuse'],
    'End',
  ),
  timeoutSeconds: integer('How long is waited for all to be settled.', 'SECONDS', 1, 604_800, 1800),
  refundSeconds: integer(
    'drain consumer: how long is waited, after leases have ended, for the operator to collect refunds from the contracts.',
    'SECONDS',
    0,
    86_400,
    0,
  ),
  drainSeconds: integer('drain provider: how long leases that run are given.', 'SECONDS', 0, 86_400, 300),
  deployment: {
    ...text('Deployment that is stopped when all is settled, NAME or NAMESPACE/NAME.', 'NAME'),
    many: true as const,
  },
  helmRelease: {
    description: 'The Helm release that is to go, for what is said where it stays: how it is kept.',
    value: 'NAME:REVISION',
    parse: (t: string) => {
      const [, name, revision] = /^([a-z0-9][-a-z0-9.]{0,52}):(\d{1,9})$/.exec(t) ?? [];
      if (!name || !revision) throw new Error('must be NAME:REVISION, as helm list shows both');
      return { name, revision };
    },
  } satisfies Option<{ readonly name: string; readonly revision: string }>,
  check: switchOption('Say what is there, and change nothing.'),
};

type Options = NonNullable<ReturnType<typeof parseOptions<typeof drainOptions>>>;

export interface DrainSurroundings {
  readonly say: (line: string) => void;
  readonly connect?: (kubeconfig: string) => Cluster;
  readonly pollMs?: number;
}

interface Side {
  /** What is there: lines for people, and whether that is nothing. */
  look(signal: AbortSignal): Promise<{ readonly clear: boolean; readonly lines: readonly string[] }>;
  /** Ends what runs. Repeated at every look: what came in between is ended too. */
  end(signal: AbortSignal): Promise<void>;
  /** After the programs have stopped. Says what is kept. */
  clean(signal: AbortSignal): Promise<readonly string[]>;
  readonly refusal: string;
  readonly late: string;
}

const deployments: Resource = {
  group: 'apps',
  version: 'v1',
  plural: 'deployments',
  kind: 'Deployment',
  namespaced: true,
};

export async function runDrain(
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  { say, connect = (kubeconfig) => connectCluster({ name: 'cluster', kubeconfig }), pollMs = 2000 }: DrainSurroundings,
  signal: AbortSignal,
): Promise<0 | 1> {
  const words: string[] = [];
  const options = parseOptions(usage, drainOptions, args, env, words);
  if (!options) return 0;
  if (words.length !== 1 || (words[0] !== 'consumer' && words[0] !== 'provider'))
    throw new UsageError(
      `which side is it? drain consumer, or drain provider; given: ${words.join(' ').slice(0, 80) || 'nothing'}`,
    );
  const cluster = connect(options.kubeconfig);
  const side = words[0] === 'consumer' ? consumerSide(cluster, options) : providerSide(cluster, options);

  const started = performance.now();
  const waited = () => Math.round((performance.now() - started) / 1000);
  let trouble: string | undefined;
  const troubled = (error: Error) => {
    if (signal.aborted) throw error;
    if (error.message !== trouble) say(`after ${waited()} s: ${error.message}; trying again`);
    trouble = error.message;
  };

  let first: Awaited<ReturnType<Side['look']>> | undefined;
  while (!first) {
    first = await side.look(signal).catch((error: Error) => {
      if (options.check || waited() > options.timeoutSeconds) throw error;
      troubled(error);
      return undefined;
    });
    if (!first) await sleep(pollMs, undefined, { signal });
  }
  for (const line of first.lines) say(line);
  if (options.check) return first.clear ? 0 : 1;
  if (!first.clear && options.onOpenLeases === 'Refuse') {
    say(`Refused: ${side.refusal}`);
    sayHowToKeep(options, say);
    return 1;
  }

  let { clear } = first;
  let told = first.lines.join('\n');
  let toldAt = started;
  if (clear) await side.end(signal);
  while (!clear) {
    signal.throwIfAborted();
    if (waited() > options.timeoutSeconds) {
      const now = await side.look(signal).catch(() => undefined);
      say(`Not settled after ${waited()} s. What is left:`);
      for (const line of now?.lines ?? [told]) say(line);
      say(side.late);
      sayHowToKeep(options, say);
      return 1;
    }
    try {
      await side.end(signal);
      const now = await side.look(signal);
      clear = now.clear;
      const text = now.lines.join('\n');
      trouble = undefined;
      // A line when something has changed, and now and then, so that who watches knows that somebody is there.
      if (text !== told || performance.now() - toldAt > 30_000) {
        say(`after ${waited()} s:`);
        for (const line of now.lines) say(line);
        told = text;
        toldAt = performance.now();
      }
    } catch (error) {
      troubled(error as Error);
    }
    if (!clear) await sleep(pollMs, undefined, { signal });
  }

  if (!first.clear && options.refundSeconds > 0) {
    say(`all is settled; waiting ${options.refundSeconds} s for refunds to be collected`);
    await sleep(options.refundSeconds * 1000, undefined, { signal });
  }
  for (const name of options.deployment) await stop(cluster, name, options, say, pollMs, signal);
  const kept = await side.clean(signal);
  say(`All is settled after ${waited()} s, and nothing is left that would hold anything up.`);
  for (const line of kept) say(line);
  return 0;
}

/** Helm marks a release before it asks us, and leaves the mark when we say no. */
function sayHowToKeep({ helmRelease, namespace }: Options, say: (line: string) => void): void {
  if (!helmRelease) return;
  const { name, revision } = helmRelease;
  say(
    `Helm now has this release as uninstalling: helm uninstall may be repeated, but helm upgrade finds "no deployed releases". To keep it, or to upgrade it first: helm rollback ${name} ${revision} --namespace ${namespace}`,
  );
}

/** All of a kind; none where the cluster does not know the kind. */
async function all<T extends KubeObject>(
  cluster: Cluster,
  resource: Resource,
  options: ListOptions,
  signal: AbortSignal,
) {
  try {
    return (await cluster.list<T>(resource, options, signal)).items;
  } catch (error) {
    if (isNotFound(error)) return [];
    throw error;
  }
}

/** Gone already is as good; not allowed or not known is not ours to insist on. */
async function remove(
  cluster: Cluster,
  resource: Resource,
  key: { namespace?: string; name: string },
  signal: AbortSignal,
) {
  try {
    await cluster.delete(resource, key, {}, signal);
  } catch (error) {
    if (!isNotFound(error) && !isApiError(error, 'Forbidden', 'MethodNotAllowed')) throw error;
  }
}

function consumerSide(cluster: Cluster, { namespace }: Options): Side {
  const leasesNow = (signal: AbortSignal) => all<GpuLease & KubeObject>(cluster, resources.gpuLeases, {}, signal);
  return {
    refusal:
      'leases are open. Delete them (kubectl delete gpulease --all --all-namespaces), or set uninstall.onOpenLeases=End and upgrade first.',
    late: 'Nothing was removed. Repeat the uninstallation when the reason above is mended. helm uninstall --no-hooks leaves all of it: each escrow then pays what its provider can prove, and the rest can be had back with the wallet when its term is over.',
    async look(signal) {
      const records = await loadRecords(cluster, namespace, systemClock, signal);
      const standing = consumer.consumerStanding(await leasesNow(signal), records.all().values());
      return { clear: consumer.isClear(standing), lines: consumer.told(standing) };
    },
    async end(signal) {
      for (const { metadata } of await leasesNow(signal))
        if (!metadata.deletionTimestamp)
          await cluster
            .delete(resources.gpuLeases, metadata, { uid: metadata.uid, propagationPolicy: 'Background' }, signal)
            .catch(ignoreGone);
    },
    async clean(signal) {
      for (const one of await all(cluster, resources.gpuProviders, {}, signal))
        await removeFinalizer(cluster, resources.gpuProviders, one, finalizers.provider, signal);
      for (const one of await all(cluster, resources.persistentVolumeClaims, {}, signal))
        if (one.metadata.finalizers?.includes(finalizers.claim))
          await removeFinalizer(cluster, resources.persistentVolumeClaims, one, finalizers.claim, signal);
      for (const { metadata } of await all(cluster, resources.gpuOffers, {}, signal))
        if (
          metadata.labels?.[labels.provider] !== undefined ||
          metadata.ownerReferences?.some((one) => one.kind === 'GpuProvider')
        )
          await remove(cluster, resources.gpuOffers, { name: metadata.name }, signal);
      await remove(cluster, resources.gpuAccesses, { name: accessName }, signal);
      const { policy, binding } = evictionGuard();
      await remove(cluster, resources.mutatingPolicyBindings, binding.metadata, signal);
      await remove(cluster, resources.mutatingPolicies, policy.metadata, signal);
      await remove(cluster, resources.leases, { namespace, name: 'gpulease-operator' }, signal);
      const receipts = await all(
        cluster,
        resources.secrets,
        { namespace, labelSelector: receiptSelector(), trim: ({ metadata }) => ({ metadata }) },
        signal,
      );
      return [
        `Kept, in namespace ${namespace}: ${receipts.length} receipt(s), the session key and stored transactions. Export receipts (gpulease receipt list --format json) before you delete the namespace.`,
        'Kept: GpuProviders and GpuBudgets, unless crds.keep is false; the key of the wallet, which is yours. Refunds that were not collected by now wait for it in the contracts.',
      ];
    },
  };
}

function providerSide(cluster: Cluster, { namespace, drainSeconds }: Options): Side {
  const recordsNow = async (signal: AbortSignal) =>
    (await all<RecordSecret>(cluster, resources.secrets, { namespace, labelSelector: recordSelector }, signal)).map(
      recordOfSecret,
    );
  const tenantsNow = async (signal: AbortSignal) =>
    (await all(cluster, resources.namespaces, { labelSelector: `${labels.tenant}=true` }, signal)).map(
      (one) => one.metadata.name,
    );
  return {
    refusal:
      'leases are open. They end by themselves when their terms do (kubectl get gpuoffers shows what is sold); or set uninstall.onOpenLeases=End and upgrade first.',
    late: `Nothing was removed, and no new leases are taken: kubectl -n ${namespace} delete configmap ${provider.controlsName} serves again. Repeat the uninstallation when the reason above is mended. helm uninstall --no-hooks leaves tenants, and vouchers that nobody cashes.`,
    async look(signal) {
      const standing = provider.providerStanding(await recordsNow(signal), await tenantsNow(signal));
      return { clear: provider.isClear(standing), lines: provider.told(standing) };
    },
    async end(signal) {
      await cluster.apply<KubeObject & { data: Record<string, string> }>(
        resources.configMaps,
        {
          apiVersion: 'v1',
          kind: 'ConfigMap',
          metadata: { name: provider.controlsName, namespace },
          data: provider.drainControls(drainSeconds),
        },
        { fieldManager: 'gpulease-drain' },
        signal,
      );
    },
    async clean(signal) {
      type Tainted = KubeObject & { spec?: { taints?: { key: string }[] } };
      for (const node of await all<Tainted>(cluster, resources.nodes, {}, signal)) {
        const taints = node.spec?.taints ?? [];
        const others = taints.filter(({ key }) => key !== labels.offered);
        if (others.length === taints.length) continue;
        const { name, resourceVersion } = node.metadata;
        await cluster
          .patch(
            resources.nodes,
            { name },
            { metadata: { resourceVersion }, spec: { taints: others } },
            { type: 'merge' },
            signal,
          )
          .catch((error) => {
            if (!isConflict(error)) throw error; // whoever was faster has seen our taint, too: the next uninstallation looks again
          });
      }
      for (const { metadata } of await all(cluster, resources.gpuOffers, { labelSelector: labels.priceList }, signal))
        await remove(cluster, resources.gpuOffers, { name: metadata.name }, signal);
      for (const name of provider.madePolicies) {
        await remove(cluster, resources.admissionPolicyBindings, { name }, signal);
        await remove(cluster, resources.admissionPolicies, { name }, signal);
      }
      for (const { metadata } of await all(
        cluster,
        resources.configMaps,
        { namespace, labelSelector: ledgerSelector },
        signal,
      ))
        await remove(cluster, resources.configMaps, { namespace, name: metadata.name }, signal);
      await remove(cluster, resources.leases, { namespace, name: 'gpulease-gateway' }, signal);
      for (const name of ['gpulease-for-consumers', provider.controlsName])
        await remove(cluster, resources.configMaps, { namespace, name }, signal);
      return [
        `Kept, in namespace ${namespace}: records of settled leases, stored transactions, and the gateway’s own certificate, whose key consumers may have pinned.`,
        'Kept: the label gpulease.dev/offered of nodes, which means nothing now, and GpuOffers that you wrote yourself, unless crds.keep is false.',
        'What was earned lies in the escrow contracts until the payee withdraws it.',
      ];
    },
  };
}

/** To no replicas, and waits until the last pod has gone. */
async function stop(
  cluster: Cluster,
  given: string,
  { namespace: here }: Options,
  say: (line: string) => void,
  pollMs: number,
  signal: AbortSignal,
): Promise<void> {
  const [namespace = here, name = given] = given.includes('/') ? given.split('/', 2) : [here, given];
  type Deployment = KubeObject & { spec?: { selector?: { matchLabels?: Record<string, string> } } };
  let stopped: Deployment;
  try {
    stopped = await cluster.patch<Deployment>(
      deployments,
      { namespace, name },
      { spec: { replicas: 0 } },
      { type: 'merge' },
      signal,
    );
  } catch (error) {
    if (isNotFound(error)) return;
    throw error;
  }
  say(`stopping ${namespace}/${name}`);
  const labelSelector = Object.entries(stopped.spec?.selector?.matchLabels ?? {})
    .map(([key, value]) => `${key}=${value}`)
    .join(',');
  // Until the last pod has gone, not only been told to: one that ends may still put a finalizer back.
  const until = performance.now() + 120_000;
  while ((await all(cluster, resources.pods, { namespace, labelSelector }, signal)).length > 0) {
    if (performance.now() > until) throw new Error(`${namespace}/${name} has pods left after two minutes`);
    await sleep(pollMs, undefined, { signal });
  }
}

const ignoreGone = (error: unknown) => {
  if (!isNotFound(error) && !isConflict(error)) throw error;
};
