/**
 * From an escrow to a tenant: room in a node's ledger, then the namespace, then Serving.
 *
 * The record names the node before the ledger is written, and it is checked again afterwards. Two replicas that work on
 * the same lease therefore meet in one ledger; a reservation that lost such a race is given back.
 */
import { gpuResource } from '../../api/labels.ts';
import { wholeGpu } from '../../api/models.ts';
import { candidates, placeOn } from '../../core/allocation/inventory.ts';
import { enter } from '../../core/allocation/plan.ts';
import type { LeaseRecord } from '../../core/allocation/record.ts';
import type { Log } from '../../engine/types.ts';
import type { Ledgers } from './ledgers.ts';
import type { Records } from './records.ts';
import type { Stock } from './stock.ts';
import type { Tenants } from './tenants.ts';
import type { Counters } from './world.ts';

export interface ProvisionOptions {
  readonly stock: Stock;
  readonly records: Records;
  readonly ledgers: Ledgers;
  readonly tenants: Tenants;
  readonly now: () => Date;
  readonly log: Log;
  readonly counters: Counters;
}

/** Returns the record as it is then: Serving, or Ended for want of room, or whatever somebody else made of it. */
export async function provision(
  options: ProvisionOptions,
  record: LeaseRecord,
  signal?: AbortSignal,
): Promise<LeaseRecord> {
  const { stock, records, ledgers, tenants, now, log, counters } = options;
  const { leaseId } = record;
  const nowSeconds = () => Math.floor(now().getTime() / 1000);
  const latest = async () => (await records.get(leaseId, signal)) ?? record;

  /** What lies there is what was promised: nodes are partitioned anew, and a record may say anything. */
  const isAsPromised = (node: string, device: string | undefined): boolean =>
    stock
      .node(node)
      ?.devices.some(
        ({ resource, partition }) =>
          resource === (device ?? gpuResource) && partition === (record.node.partition ?? wholeGpu),
      ) === true;

  async function reserveOn(node: string, device: string | undefined): Promise<boolean> {
    if (!isAsPromised(node, device)) return false;
    const sellable = await stock.sellableNow(node, device ?? gpuResource, signal);
    if (sellable === undefined) return false;
    const wanted = {
      ...record.room,
      ...(device === undefined ? {} : { device }),
      consumer: record.quote.consumer,
      offerName: record.node.offerName,
      since: now().toISOString(),
    };
    const reservation = await ledgers.reserve(node, leaseId, wanted, sellable, signal);
    if (reservation.outcome === 'exhausted') {
      log.info({ leaseId, node, lacking: reservation.lacking }, 'the node has no room for the lease');
      return false;
    }
    return true;
  }

  const tried = new Set<string>();
  /** Where room was found: perhaps not where it was put first. All else is as it was checked before this was called. */
  let placed: LeaseRecord;
  for (let node = record.nodeName, device = record.device; ; ) {
    if (node !== '' && (await reserveOn(node, device))) {
      const stored = await latest();
      const isHere = stored.nodeName === node && stored.device === device;
      placed = { ...record, nodeName: node, device };
      if (stored.state === 'Provisioning' && isHere) break;
      // Somebody else put it elsewhere, or it ended meanwhile.
      if (!isHere || stored.state === 'Ended') await ledgers.free(node, leaseId, signal);
      return stored;
    }
    tried.add(node);
    const offer = stock.offer(record.node.offerName);
    const next = offer && candidates(offer, record.room).find((one) => !tried.has(one.node.name));
    const stored = await records.update(
      leaseId,
      (now) => {
        if (now.state !== 'Provisioning' || now.nodeName !== node) return now;
        return next === undefined
          ? enter({ ...now, tornDown: true }, 'Ended', nowSeconds(), 'CapacityExhausted')
          : { ...now, ...placeOn(next) };
      },
      signal,
    );
    if (stored === undefined) return record;
    if (stored.state !== 'Provisioning') return stored;
    if (tried.has(stored.nodeName)) return stored;
    node = stored.nodeName;
    device = stored.device;
  }

  await tenants.make(placed, signal);
  const serving = await records.update(
    leaseId,
    (now) => (now.state === 'Provisioning' ? enter(now, 'Serving', nowSeconds()) : now),
    signal,
  );
  if (serving?.state === 'Serving') {
    counters.count('gpulease_gateway_allocations_total', { offer: placed.node.offerName });
    log.info({ leaseId, node: serving.nodeName, gpus: serving.room.gpus }, 'serving a lease');
  }
  return serving ?? placed;
}
