/** Writes what was seen of a lease into its status. An unchanged world writes nothing. */
import { mergeConditions, type Verdict } from '../../api/conditions.ts';
import type { GpuLease, LeaseStatus } from '../../api/lease.ts';
import { whole } from '../../core/lease/amounts.ts';
import { lockable } from '../../core/lease/fund.ts';
import { servedSeconds } from '../../core/lease/meter.ts';
import { type Ending, intents, type Observed } from '../../core/lease/observed.ts';
import { finalizableAt } from '../../core/money/escrow.ts';
import { priceOf } from '../../core/money/price.ts';
import { matchOffers } from '../../core/offer/match.ts';
import { applyStatus } from '../../engine/status.ts';
import { resources } from '../../engine/types.ts';
import type { LeaseWorld } from './world.ts';

export const fieldManager = 'gpulease-lease';

const instant = (date: Date) => date.toISOString().replace(/\.\d{3}Z$/, 'Z');

export async function reportLease(
  world: LeaseWorld,
  seen: Observed,
  conditions: readonly Verdict[],
  signal: AbortSignal,
): Promise<void> {
  if (conditions.length === 0 || seen.lease.status?.endedAt || seen.orphaned) return;
  const ready = conditions.find((c) => c.type === 'Ready');
  world.metrics?.pending(seen.lease.metadata.uid!, ready?.status === 'True' ? undefined : ready?.reason);
  await write(world, seen.lease, leaseStatus(seen, conditions), signal);
}

/** The last word: nothing is written after it. */
export async function endOfLease(world: LeaseWorld, seen: Observed, why: Ending, signal: AbortSignal): Promise<void> {
  if (seen.orphaned) return;
  const status = leaseStatus(seen, [
    { type: 'Ready', status: 'False', reason: 'Completed', message: `The lease ended (${why.reason}): ${why.message}` },
    { type: 'Drained', status: 'True', reason: 'Drained', message: '' },
    { type: 'Released', status: 'True', reason: 'Released', message: '' },
    {
      type: 'Settled',
      status: 'True',
      reason: why.reason,
      message: 'See status.settlement for what was paid and refunded.',
    },
  ]);
  await write(
    world,
    seen.lease,
    { ...status, nodeName: undefined, providerID: undefined, endedAt: instant(world.now()), endReason: why.reason },
    signal,
  );
}

async function write(world: LeaseWorld, lease: GpuLease, status: LeaseStatus, signal: AbortSignal): Promise<void> {
  const target = { cluster: world.cluster, resource: resources.gpuLeases, object: lease, fieldManager };
  await applyStatus(target, status, signal);
}

function leaseStatus(seen: Observed, verdicts: readonly Verdict[]): LeaseStatus {
  const { lease, record, chain, node, allocation, now } = seen;
  const quote = record?.quote;
  const known = chain?.state === 'known' ? chain : undefined;
  const escrow = known?.escrow;
  const status: LeaseStatus = {
    observedGeneration: lease.metadata.generation,
    conditions: mergeConditions(lease.status?.conditions, verdicts, lease.metadata.generation ?? 0, now),
    attempt: record?.attempt ?? 1,
    attempts: record && record.attempts.length > 0 ? [...record.attempts] : undefined,
    selection: quote ? lease.status?.selection : matchOffers({ ...seen, avoid: record?.avoid ?? [] }).selection,
    startedAt: record?.startedAt ? instant(new Date(record.startedAt)) : undefined,
  };
  if (!quote) return status;

  const terms = quote.signed.quote;
  const price = BigInt(terms.pricePerGpuHour);
  const amount = (units: bigint) => whole(units, quote.decimals);
  status.quote = {
    hash: quote.hash,
    assetSymbol: quote.assetSymbol,
    pricePerGpuHour: amount(price),
    totalForTerm: amount(priceOf(terms.maxSeconds, terms.gpus, price)),
    expiresAt: instant(new Date(Number(terms.expiresAt) * 1000)),
  };
  status.offerName = quote.offerName;
  status.providerName = quote.providerName;
  if (node) {
    status.nodeName = node.name;
    status.providerID = `gpulease://${quote.providerName}/${quote.leaseId}`;
  }
  const info = allocation?.state === 'known' ? allocation.info : undefined;
  status.capacity = info
    ? {
        'nvidia.com/gpu': info.gpus,
        cpu: info.resources.cpu,
        memory: info.resources.memory,
        'ephemeral-storage': info.resources.ephemeralStorage,
        pods: info.pods,
      }
    : lease.status?.capacity;
  status.expiresAt = expiry(seen);

  const deposit = escrow?.deposit ?? 0n;
  const locked = escrow && !escrow.closed ? escrow.deposit - escrow.claimed : 0n;
  const vouched = priceOf(record.signedSeconds, terms.gpus, price);
  const accrued = escrow?.closed ? escrow.claimed : vouched < deposit ? vouched : deposit;
  status.cost = {
    assetSymbol: quote.assetSymbol,
    ratePerHour: amount(price * BigInt(terms.gpus)),
    lockable: amount(lockable(seen, quote)),
    lockedUntil: known ? lockedUntil(known) : lease.status?.cost?.lockedUntil,
    escrowed: known ? amount(locked) : (lease.status?.cost?.escrowed ?? '0'),
    accrued: known ? amount(accrued) : (lease.status?.cost?.accrued ?? '0'),
    paid: escrow ? amount(escrow.claimed - escrow.feeTaken) : (lease.status?.cost?.paid ?? '0'),
    fee: escrow ? amount(escrow.feeTaken) : (lease.status?.cost?.fee ?? '0'),
    refunded: escrow ? amount(escrow.refunded) : (lease.status?.cost?.refunded ?? '0'),
  };
  const tx = (key: string) => known?.txs[key]?.hash;
  const before = lease.status?.settlement?.leaseId === quote.leaseId ? lease.status.settlement : undefined;
  status.settlement = {
    chainId: quote.signed.chainId,
    escrow: quote.signed.escrow,
    token: terms.token,
    leaseId: quote.leaseId,
    servedSeconds: escrow?.closed ? escrow.servedSeconds : Math.max(record.signedSeconds, 0),
    depositBaseUnits: escrow ? String(escrow.deposit) : (before?.depositBaseUnits ?? record.deposit ?? '0'),
    paidBaseUnits: escrow ? String(escrow.claimed - escrow.feeTaken) : before?.paidBaseUnits,
    feeBaseUnits: escrow ? String(escrow.feeTaken) : before?.feeBaseUnits,
    refundedBaseUnits: escrow ? String(escrow.refunded) : before?.refundedBaseUnits,
    openTx: tx(intents.open(quote.leaseId)) ?? before?.openTx,
    closeTx: tx(intents.close(quote.leaseId)) ?? tx(intents.finalize(quote.leaseId)) ?? before?.closeTx,
  };
  return status;
}

/** When the escrow can be finalized without a signature, if nobody does anything before. */
function lockedUntil({
  escrow,
  claimWindowSeconds,
}: Extract<Observed['chain'], { state: 'known' }>): string | undefined {
  return escrow && !escrow.closed ? instant(new Date(finalizableAt(escrow, claimWindowSeconds) * 1000)) : undefined;
}

/** When the term ends if the node stays Ready. Moved only by more than half a minute, so that it does not flap. */
function expiry({ lease, record, now }: Observed): string | undefined {
  if (!record?.startedAt) return undefined;
  const left = lease.spec.term.durationSeconds - servedSeconds(record.meter);
  const counted = record.meter.countedUntil ? new Date(record.meter.countedUntil).getTime() : now.getTime();
  const at = counted + left * 1000;
  const before = lease.status?.expiresAt;
  if (before && Math.abs(new Date(before).getTime() - at) < 30_000) return before;
  return instant(new Date(at));
}
