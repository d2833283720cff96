/**
 * What belongs to no lease: GPUs set aside, and tenants' namespaces, whose record says that they are over, or that have
 * none. Only facts count: records are read from the API server, escrows from the chain, neither from a cache.
 *
 * A record is written by the process that faces the internet. That it calls a lease clean, or served elsewhere, gives no GPU back
 * by itself: whether anything of the tenant is on the node that is held for it, cluster and kubelet are asked.
 */
import type { Hex32 } from '../../api/messages.ts';
import type { NodeLedger } from '../../core/allocation/ledger.ts';
import { moneyIsOver } from '../../core/allocation/settlement.ts';
import type { Log } from '../../engine/types.ts';
import { type Ledgers, ledgerOfConfigMap } from './ledgers.ts';
import type { Records } from './records.ts';
import type { Residue } from './residue.ts';
import type { Stock } from './stock.ts';
import type { Tenant, Tenants } from './tenants.ts';
import type { Chains, Counters } from './world.ts';

export interface SweepOptions {
  readonly stock: Pick<Stock, 'ledgers'>;
  readonly records: Pick<Records, 'get'>;
  readonly ledgers: Pick<Ledgers, 'free'>;
  readonly tenants: Pick<Tenants, 'list' | 'place' | 'tearDown' | 'removeNamespace'>;
  readonly residue: Residue;
  readonly chains: Pick<Chains, 'chain'>;
  readonly now: () => Date;
  readonly log: Log;
  readonly counters: Counters;
}

/** What is being made has no record, or no entry in it, for a moment. */
const youngSeconds = 60;

export async function sweep(options: SweepOptions, signal: AbortSignal): Promise<void> {
  await sweepReservations(options, signal);
  for (const tenant of await options.tenants.list(signal)) await sweepTenant(options, tenant, signal);
}

async function sweepReservations(options: SweepOptions, signal: AbortSignal): Promise<void> {
  const { stock, records, ledgers, tenants, residue, now, log, counters } = options;
  for (const map of stock.ledgers.list()) {
    let ledger: NodeLedger;
    try {
      ledger = ledgerOfConfigMap(map);
    } catch (error) {
      // Its node is not offered while this lasts; the other nodes are none the worse for it.
      log.error({ ledger: map.metadata.name, error: String(error) }, 'a ledger cannot be read: repair it by hand');
      continue;
    }
    for (const [leaseId, sold] of Object.entries(ledger.entries)) {
      if (Date.parse(sold.since) > now().getTime() - youngSeconds * 1000) continue;
      const record = await records.get(leaseId as Hex32, signal);
      // After its end, too: until nothing of its tenant is left, which its own reconciler finds out.
      if (record !== undefined && !record.clean && record.nodeName === ledger.node) continue;
      // Its pods may be running: they hold the GPUs, whatever the record says, or became of it.
      const place = await tenants.place(leaseId as Hex32, ledger.node, signal);
      if (place === 'here') continue;
      const { storage, unseen } = record ?? {};
      const held = { leaseId: leaseId as Hex32, nodeName: ledger.node, storage, unseen };
      if (place === 'gone' && (await residue.left(held, signal)) !== undefined) continue;
      counters.count('gpulease_gateway_orphans_total', { kind: 'reservation' });
      log.warn({ leaseId, node: ledger.node }, 'a reservation that no lease stands behind is given back');
      await ledgers.free(ledger.node, leaseId as Hex32, signal);
    }
  }
}

async function sweepTenant(options: SweepOptions, tenant: Tenant, signal: AbortSignal): Promise<void> {
  const { records, tenants, chains, now, log, counters } = options;
  const { namespace, escrow: paid, createdAt } = tenant;
  if (createdAt.getTime() > now().getTime() - youngSeconds * 1000) return;
  const byHand = 'remove its namespace by hand if it is not needed';
  if (!paid) {
    counters.count('gpulease_gateway_orphans_total', { kind: 'tenant' });
    log.warn({ namespace }, `a tenant does not tell where its money is, and is left alone: ${byHand}`);
    return;
  }
  const record = await records.get(paid.leaseId, signal);
  if (record !== undefined) {
    if (record.state === 'Ended' && record.tornDown) await tenants.removeNamespace(namespace, signal);
    return;
  }
  counters.count('gpulease_gateway_orphans_total', { kind: 'tenant' });
  // The record was lost. While there is money, its consumer may ask for the lease again, and finds its pods.
  const chain = chains.chain(paid.chainId, paid.escrow);
  if (!chain) {
    log.warn({ namespace, ...paid }, `a tenant without a record is paid on a chain that is not known here: ${byHand}`);
    return;
  }
  const [seen] = await chain.reads([paid.leaseId], signal);
  if (!moneyIsOver(seen!, createdAt)) return;
  log.warn({ namespace, leaseId: paid.leaseId }, 'a tenant without a record and without money is taken down');
  await tenants.tearDown(paid.leaseId, true, signal);
}
