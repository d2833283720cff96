/** The gateway's rounds of settlement: production reads and decisions over the endpoints that misbehave, with one lease's record. */
import { escrowChain } from '../../operator/adapters/gateway/escrow-chains.ts';
import type { Hex32, Signed, Voucher } from '../../operator/api/messages.ts';
import { type ChainView, createChainView } from '../../operator/controllers/provider/chain-view.ts';
import { createRecords, type RecordSecret } from '../../operator/controllers/provider/records.ts';
import { settleAll } from '../../operator/controllers/provider/settlement.ts';
import { noCounters } from '../../operator/controllers/provider/world.ts';
import type { LeaseRecord } from '../../operator/core/allocation/record.ts';
import { silentLog } from '../../operator/engine/log.ts';
import { type Informer, resources } from '../../operator/engine/types.ts';
import { fakeCluster } from '../support/fake-cluster.ts';
import { type ChainLab, escrowOver, type OpenLease } from './lab.ts';

export interface Gateway {
  /** One round. What it submitted is not waited for. */
  round(): Promise<void>;
  record(): Promise<LeaseRecord>;
}

const namespace = 'gpulease-system';

/** With a lease that is over here, torn down, and vouched for up to `voucher`. */
export async function startGateway(
  lab: ChainLab,
  lease: OpenLease,
  voucher: Signed<Voucher>,
  over: Pick<LeaseRecord, 'state' | 'reason'>,
): Promise<Gateway> {
  const { chain } = lab;
  const { chainId, escrow } = chain.client.domain;
  const rpc = await lab.connect({ timeoutMs: 5000 });
  const outbox = await lab.outbox({ key: chain.keys.provider, rpc });
  const ours = escrowChain(await escrowOver(lab, rpc), outbox);
  const cluster = fakeCluster({ name: 'provider' });
  const records = createRecords(cluster, namespace);
  const seen = (await lab.lease(lease.leaseId))!;
  await records.create({
    version: 1,
    leaseId: lease.leaseId,
    chainId,
    escrow,
    quote: { ...lease.quote, pricePerGpuHour: String(lease.quote.pricePerGpuHour), nonce: String(lease.quote.nonce) },
    quoteSignature: '0x',
    node: {} as LeaseRecord['node'],
    signer: chain.keys.session.address,
    openedAt: seen.openedAt,
    endsAt: seen.endsAt,
    room: { gpus: 1, cpuMillis: 1, memoryBytes: 1, ephemeralBytes: 1, pods: 1 },
    nodeName: '',
    createdAt: new Date(seen.openedAt * 1000).toISOString(),
    endedAt: new Date(seen.openedAt * 1000).toISOString(),
    paidSeconds: 3600,
    tornDown: true,
    voucher: { ...voucher.message, signature: voucher.signature },
    ...over,
  } as LeaseRecord);
  const stored = async () =>
    (await cluster.list<RecordSecret>(resources.secrets, { namespace })).items as readonly RecordSecret[];
  const view: ChainView = createChainView();
  let watched: readonly RecordSecret[] = [];
  return {
    async round() {
      watched = await stored();
      const time = new Date((await chain.now()) * 1000);
      await settleAll(
        {
          watched: { list: () => watched } as unknown as Informer<RecordSecret>,
          records,
          chains: { rails: () => [], chain: () => ours, all: () => [ours], awaited: () => false },
          view,
          rounds: { failed: new Set(), busy: new Set() },
          rules: () => ({
            thresholdUnits: 1n,
            intervalSeconds: 1,
            patienceSeconds: 0,
            claimWindowSeconds: chain.client.claimWindowSeconds,
          }),
          now: () => time,
          log: silentLog,
          counters: noCounters,
          changed: () => undefined,
        },
        new AbortController().signal,
      );
    },
    record: async () => (await records.get(lease.leaseId as Hex32))!,
  };
}
