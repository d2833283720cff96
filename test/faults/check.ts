/**
 * What must hold after every scenario, whatever was broken in it:
 *
 *   one escrow    no lease ever had two
 *   no orphan     every open escrow, tenant, node, carried pod, ledger entry and record belongs to a lease that exists
 *   no restart    a pod at the provider is the one that was made first, and its containers never restarted
 *   final         a pod that has ended stays as it ended
 *   conservation  deposits = paid + fee + refunded + held; every closed escrow paid exactly its served seconds
 */
import { Interface } from 'ethers';
import { leaseIdOf, leaseRefOf } from '../../operator/adapters/chain/messages.ts';
import { annotations, labels, managedBy } from '../../operator/api/labels.ts';
import type { GpuLease } from '../../operator/api/lease.ts';
import type { Hex32 } from '../../operator/api/messages.ts';
import { leaseEscrow } from '../../operator/contracts/generated/lease-escrow.ts';
import { ledgerOfConfigMap } from '../../operator/controllers/provider/ledgers.ts';
import { tenantNamespace } from '../../operator/core/allocation/record.ts';
import { type Escrow, heldIn } from '../../operator/core/money/escrow.ts';
import { feeOf, priceOf } from '../../operator/core/money/price.ts';
import { type KubeObject, resources } from '../../operator/engine/types.ts';
import { namespace } from '../../operator/sandbox/sandbox.ts';
import { checkConservation, escrowClient, until } from '../../operator/sandbox/scenario.ts';
import type { Lab, Pod } from './lab.ts';

/** More attempts than any lease makes here. */
const attempts = 8;

export interface Checker {
  /** Throws with all that is wrong, once it is clear that it stays wrong. */
  check(settleSeconds?: number): Promise<void>;
  readonly totals: { escrows: number; leases: number; pods: number; checks: number };
}

export async function createChecker(lab: Lab): Promise<Checker> {
  const { sandbox } = lab;
  const clusterUid = (await sandbox.consumerCluster.get(resources.namespaces, { name: 'kube-system' }))!.metadata.uid!;
  const opened = new Interface(leaseEscrow.abi).getEvent('LeaseOpened')!.topicHash;
  /** By UID of the consumer's pod. */
  const remote = new Map<string, { uid: string; restarts: number; containers: string }>();
  const ended = new Map<string, string>();
  const totals = { escrows: 0, leases: 0, pods: 0, checks: 0 };

  async function escrows(): Promise<{ leaseId: Hex32; escrow: Escrow }[]> {
    const logs = await sandbox.chain.rpc<{ topics: string[] }[]>('eth_getLogs', {
      address: sandbox.deployment.escrow,
      topics: [opened],
      fromBlock: '0x0',
      toBlock: 'latest',
    });
    const ids = logs.map((log) => log.topics[1] as Hex32);
    const client = await escrowClient(sandbox);
    const read = await client.leases(ids);
    return ids.map((leaseId, index) => ({ leaseId, escrow: read[index]! }));
  }

  async function wrong(): Promise<string[]> {
    const found: string[] = [];
    const { consumerCluster } = sandbox;
    const leases = (await consumerCluster.list<GpuLease & KubeObject>(resources.gpuLeases)).items;
    for (const lease of leases) lab.made.set(lease.metadata.uid!, lease.metadata.name);
    const living = new Set(leases.map((lease) => lease.metadata.uid!));
    const unended = new Set(leases.filter((l) => !l.status?.endedAt).map((l) => l.metadata.uid!));

    const owner = new Map<string, string>();
    for (const uid of lab.made.keys())
      for (let attempt = 1; attempt <= attempts; attempt++)
        owner.set(leaseIdOf(sandbox.wallet, leaseRefOf(clusterUid, uid, attempt)).toLowerCase(), uid);
    const all = await escrows();
    totals.escrows = all.length;
    totals.leases = lab.made.size;
    const perLease = new Map<string, number>();
    const servedIds = new Set<string>();
    for (const { leaseId, escrow } of all) {
      const uid = owner.get(leaseId.toLowerCase());
      if (uid === undefined) {
        found.push(`escrow ${leaseId} belongs to no lease that was ever made`);
        continue;
      }
      perLease.set(uid, (perLease.get(uid) ?? 0) + 1);
      if (!escrow.closed) {
        servedIds.add(leaseId.toLowerCase());
        if (!unended.has(uid)) found.push(`escrow ${leaseId} of lease ${lab.made.get(uid)} is open and nobody's`);
      } else found.push(...wrongBill(escrow));
    }
    for (const [uid, count] of perLease) if (count > 1) found.push(`lease ${lab.made.get(uid)} had ${count} escrows`);

    await orphansAtConsumer(living, unended, found);
    await orphansAtProvider(servedIds, found);
    await pods(found);
    await checkConservation(sandbox).catch((error: Error) => found.push(error.message));
    const held = all.reduce((sum, { escrow }) => sum + heldIn(escrow), 0n);
    const counted = await heldByContract();
    if (held !== counted) found.push(`the contract holds ${counted}, its open escrows ${held}`);
    return found;
  }

  async function heldByContract(): Promise<bigint> {
    const client = await escrowClient(sandbox);
    let sum = 0n;
    for (const token of Object.values(sandbox.deployment.tokens)) sum += (await client.totals(token.address)).held;
    return sum;
  }

  async function orphansAtConsumer(living: Set<string>, unended: Set<string>, found: string[]): Promise<void> {
    const nodes = await sandbox.consumerCluster.list(resources.nodes, {
      labelSelector: `${labels.managedBy}=${managedBy}`,
    });
    for (const node of nodes.items)
      if (!unended.has(node.metadata.labels?.[labels.leaseUid] ?? ''))
        found.push(`node ${node.metadata.name} stands for no lease`);
    const records = await sandbox.consumerCluster.list(resources.secrets, {
      namespace,
      labelSelector: `${labels.managedBy}=${managedBy},${labels.leaseUid}`,
    });
    for (const record of records.items)
      if (!living.has(record.metadata.labels?.[labels.leaseUid] ?? ''))
        found.push(`the operator's record ${record.metadata.name} is of no lease`);
  }

  async function orphansAtProvider(openIds: Set<string>, found: string[]): Promise<void> {
    const tenants = await sandbox.providerCluster.list(resources.namespaces, { labelSelector: labels.tenant });
    const wanted = new Set([...openIds].map((id) => tenantNamespace(id as Hex32)));
    for (const tenant of tenants.items)
      if (!wanted.has(tenant.metadata.name)) found.push(`tenant ${tenant.metadata.name} has no open escrow`);
    const maps = await sandbox.providerCluster.list<KubeObject>(resources.configMaps, { namespace });
    for (const map of maps.items) {
      if (!map.metadata.name.startsWith('ledger-')) continue;
      const ledger = ledgerOfConfigMap(map as never);
      for (const id of Object.keys(ledger.entries))
        if (!openIds.has(id.toLowerCase())) found.push(`${map.metadata.name} still holds GPUs for ${id}`);
    }
  }

  async function pods(found: string[]): Promise<void> {
    const here = (await sandbox.consumerCluster.list<Pod>(resources.pods)).items;
    const known = new Set(here.map((pod) => pod.metadata.uid));
    const there = (
      await sandbox.providerCluster.list<Pod>(resources.pods, { labelSelector: `${labels.managedBy}=${managedBy}` })
    ).items;
    const seen = new Set<string>();
    for (const pod of there) {
      const of = pod.metadata.annotations?.[annotations.podUid] ?? '';
      if (!known.has(of)) found.push(`pod ${pod.metadata.namespace}/${pod.metadata.name} at the provider is nobody's`);
      if (seen.has(of)) found.push(`pod ${of} runs twice at the provider`);
      seen.add(of);
      const containers = pod.status?.containerStatuses ?? [];
      const now = {
        uid: pod.metadata.uid!,
        restarts: containers.reduce((sum, one) => sum + one.restartCount, 0),
        containers: containers.map((one) => one.containerID ?? '').join(),
      };
      const before = remote.get(of);
      const name = `${pod.metadata.annotations?.[annotations.podNamespace]}/${pod.metadata.annotations?.[annotations.podName]}`;
      if (before && before.uid !== now.uid) found.push(`pod ${name} was made again at the provider`);
      if (now.restarts > 0) found.push(`pod ${name} was restarted ${now.restarts} times`);
      if (before?.containers && now.containers && before.containers !== now.containers)
        found.push(`pod ${name} runs in another container than before`);
      remote.set(of, { ...now, containers: now.containers || (before?.containers ?? '') });
    }
    totals.pods = remote.size;
    for (const pod of here) {
      const { uid, name } = pod.metadata;
      const { phase } = pod.status ?? {};
      const over = phase === 'Succeeded' || phase === 'Failed';
      const state = JSON.stringify([phase, pod.status?.containerStatuses?.map((one) => one.state)]);
      const before = ended.get(uid!);
      if (before !== undefined && before !== state)
        found.push(`pod ${name} had ended as ${before}, now it is ${state}`);
      if (over && before === undefined) ended.set(uid!, state);
      if (pod.status?.reason === 'PodGoneAtProvider' || pod.status?.reason === 'Evicted')
        found.push(`pod ${name} was lost: ${pod.status.reason}`);
    }
  }

  return {
    totals,
    async check(settleSeconds = 60) {
      totals.checks += 1;
      let last: string[] = [];
      await until(
        'the world being in order',
        settleSeconds,
        async () => {
          try {
            last = await wrong();
          } catch (error) {
            last = [`the world cannot be read: ${(error as Error).message.slice(0, 300)}`];
          }
          return last.length === 0 ? true : undefined;
        },
        lab.signal,
      ).catch((error: Error) => {
        lab.signal.throwIfAborted();
        throw last.length > 0 ? new Error(last.slice(0, 6).join('; ')) : error;
      });
    },
  };
}

/** By the contract's own arithmetic, to the base unit. */
export function wrongBill(escrow: Escrow): string[] {
  const price = priceOf(escrow.servedSeconds, escrow.gpus, escrow.pricePerGpuHour);
  const due = price < escrow.deposit ? price : escrow.deposit;
  const found: string[] = [];
  if (escrow.claimed !== due) found.push(`${escrow.leaseId}: ${escrow.claimed} was claimed, ${due} is due`);
  if (escrow.feeTaken !== feeOf(due, escrow.feeBps)) found.push(`${escrow.leaseId}: the fee is ${escrow.feeTaken}`);
  if (escrow.deposit !== escrow.claimed + escrow.refunded)
    found.push(`${escrow.leaseId}: ${escrow.deposit} in, ${escrow.claimed} + ${escrow.refunded} out`);
  return found;
}
