/** The lease controller against small fakes: what is stored before what, what a crash costs, and which quotes are refused. */
import { describe, expect, it } from 'vitest';
import type { SignedQuote } from '../../../../operator/api/gateway.ts';
import type { GpuLease } from '../../../../operator/api/lease.ts';
import { type Receipt, receipt as receiptSchema } from '../../../../operator/api/receipt.ts';
import {
  type ReceiptSecret,
  receiptField,
  receiptSecretType,
} from '../../../../operator/controllers/consumer/receipts.ts';
import { type KubeObject, resources } from '../../../../operator/engine/types.ts';
import { allocationInfo, lease, provider, rail } from '../../../support/builders.ts';
import {
  consumerFakes,
  type Fakes,
  promiseHashOf,
  releaseSignature,
  signatureOf,
  totals,
} from '../../../support/consumer-fakes.ts';

const key = { namespace: 'ml', name: 'train' };
const ready = (fakes: Fakes) => fakes.condition('Ready') === 'True Serving';
const untilReady = (fakes: Fakes) => fakes.until(() => ready(fakes), 'Ready');
const untilGone = (fakes: Fakes) => fakes.until(() => fakes.lease() === undefined, 'gone');
const deleteLease = (fakes: Fakes) => fakes.cluster.delete(resources.gpuLeases, key);
const isReceipt = ({ type }: ReceiptSecret) => type === receiptSecretType;
/** Receipts are meant to stay. */
const secrets = (fakes: Fakes) =>
  fakes.cluster.objects<ReceiptSecret>(resources.secrets).filter((one) => !isReceipt(one)).length;
const receipts = (fakes: Fakes): Receipt[] =>
  fakes.cluster
    .objects<ReceiptSecret>(resources.secrets)
    .filter(isReceipt)
    .map(({ data }) => JSON.parse(Buffer.from(data![receiptField]!, 'base64').toString()));
/** Index of a step's first occurrence; fails when there is none. */
function first(fakes: Fakes, name: string): number {
  const at = fakes.steps.findIndex((one) => one.startsWith(name));
  expect(at, `${name} among ${fakes.steps.join(', ')}`).toBeGreaterThanOrEqual(0);
  return at;
}

async function wholeLife(fakes: Fakes): Promise<void> {
  await untilReady(fakes);
  fakes.seconds += 60;
  await fakes.until(() => (fakes.gateway.vouchers.at(-1)?.servedSeconds ?? 0) >= 55, 'a voucher');
  await deleteLease(fakes);
  await untilGone(fakes);
}

describe('a lease', () => {
  it('lives, is paid for what it served, and leaves nothing', async () => {
    const fakes = await consumerFakes();
    await wholeLife(fakes);
    expect(fakes.chain.opened).toHaveLength(1);
    const escrow = fakes.chain.model.leases.get(fakes.chain.opened[0]!)!;
    expect(escrow).toMatchObject({ closed: true, closeReason: 'LastVoucher', deposit: 360_000n });
    expect(escrow.claimed).toBe(BigInt(escrow.servedSeconds) * 100n);
    const { deposited, paid, fee, refunded, held } = totals(fakes);
    expect([deposited, held]).toEqual([360_000n, 0n]);
    expect(paid + fee + refunded).toBe(deposited);
    expect([secrets(fakes), fakes.node]).toEqual([0, undefined]);
    expect(fakes.events.map((e) => e.reason)).toEqual(
      expect.arrayContaining(['QuoteReady', 'EscrowOpened', 'NodeRegistered', 'Serving', 'Released', 'Settled']),
    );
  });

  it('says at its end which claims lose what they store, and tells them until when', async () => {
    const fakes = await consumerFakes();
    fakes.claims = ['ml/data-0'];
    await wholeLife(fakes);
    const messages = (reason: string) => fakes.events.filter((e) => e.reason === reason).map((e) => e.message);
    expect(messages('Released')).toEqual([
      expect.stringContaining('What this claim stores is lost with it: ml/data-0.'),
    ]);
    expect(messages('LeaseEnding')).toContainEqual(
      expect.stringMatching(/What this claim stores is lost when its node goes, at \d{4}-/),
    );
  });

  it('leaves a receipt that says what the chain says, and outlives it', async () => {
    const fakes = await consumerFakes();
    await wholeLife(fakes);
    const escrow = fakes.chain.model.leases.get(fakes.chain.opened[0]!)!;
    const [receipt, ...others] = receipts(fakes);
    expect(others).toEqual([]);
    expect(receiptSchema.parse(receipt)).toEqual(receipt);
    expect(receipt!.lease).toMatchObject({ clusterUid: 'cluster-uid', namespace: 'ml', name: 'train', attempt: 1 });
    expect(receipt!.settlement).toMatchObject({
      servedSeconds: escrow.servedSeconds,
      claimed: String(escrow.claimed),
      fee: String(escrow.feeTaken),
      refunded: String(escrow.refunded),
      closeReason: 'LastVoucher',
    });
    expect(receipt!.release?.servedSeconds).toBe(escrow.servedSeconds);
    expect(receipt!.voucher).toMatchObject({ servedSeconds: escrow.servedSeconds, last: true });
    const [secret] = fakes.cluster.objects<ReceiptSecret>(resources.secrets);
    expect(secret!.immutable).toBe(true);
    expect(secret!.metadata.labels).toMatchObject({
      'gpulease.dev/receipt-month': '2026-01',
      'gpulease.dev/lease-namespace': 'ml',
    });
  });

  it('leaves a receipt without a release when the provider signs none, and says so', async () => {
    const fakes = await consumerFakes({ settings: { releaseTimeoutSeconds: 5, closeTimeoutSeconds: 5 } });
    await untilReady(fakes);
    fakes.seconds += 60;
    await fakes.until(() => (fakes.gateway.vouchers.at(-1)?.servedSeconds ?? 0) >= 55, 'a voucher');
    fakes.gateway.closes = false;
    fakes.gateway.outcome.release = { ok: false, kind: 'unknown', message: 'no answer' };
    await deleteLease(fakes);
    await untilGone(fakes);
    const [receipt] = receipts(fakes);
    expect(receipt!.release).toBeUndefined();
    expect(receipt!.withoutRelease).toContain('ams gave no release; the consumer stopped the clock');
    expect(receipt!.settlement.closeReason).toBe('ConsumerRequested');
  });

  it('that ended under a version that wrote no receipts gets one', async () => {
    const fakes = await consumerFakes({
      lease: lease({ term: { durationSeconds: 60 } }, { metadata: { finalizers: [] } }),
    });
    await fakes.until(() => fakes.lease()?.status?.endedAt !== undefined, 'ended');
    const [{ metadata }] = fakes.cluster.objects<ReceiptSecret>(resources.secrets).filter(isReceipt) as [ReceiptSecret];
    fakes.cluster.erase(resources.secrets, { namespace: metadata.namespace, name: metadata.name });
    const { receiptOf, ...older } = fakes.record()!;
    expect(receiptOf).toBe(fakes.chain.opened[0]);
    await fakes.records.save(fakes.lease()!, older);
    await fakes.reconcile();
    expect(receipts(fakes)).toHaveLength(1);
  });

  it('writes nothing while nothing changes', async () => {
    const fakes = await consumerFakes();
    await untilReady(fakes);
    await fakes.reconcile();
    fakes.steps.length = 0;
    await fakes.reconcile();
    expect(fakes.steps.filter((s) => /^(create|replace|apply|patch|delete) /.test(s))).toEqual([]);
    expect(fakes.steps.filter((s) => /signVoucher|vouch|open|topUp/.test(s))).toEqual([]);
  });

  it('writes nothing at all once it has ended', async () => {
    const fakes = await consumerFakes({
      lease: lease({ term: { durationSeconds: 60 } }, { metadata: { finalizers: [] } }),
    });
    await fakes.until(() => fakes.lease()?.status?.endedAt !== undefined, 'ended');
    expect(fakes.lease()?.status).toMatchObject({
      endReason: 'Expired',
      settlement: { servedSeconds: expect.any(Number) },
    });
    fakes.steps.length = 0;
    const before = fakes.lease()?.metadata.resourceVersion;
    await fakes.reconcile();
    expect(
      fakes.steps.filter((s) =>
        /^(create|replace|apply|patch|delete) |money\.(open|sign|request|close|fin)|gateway\.(quote|alloc.*e$|vouch|release)/.test(
          s,
        ),
      ),
    ).toEqual([]);
    expect(fakes.lease()?.metadata.resourceVersion).toBe(before);
  });

  it('that was never paid for goes away at once', async () => {
    const fakes = await consumerFakes({ lease: lease({ suspend: true }, { metadata: { finalizers: [] } }) });
    await fakes.reconcile();
    expect(fakes.condition('Ready')).toBe('False Suspended');
    await deleteLease(fakes);
    await fakes.reconcile();
    expect([fakes.lease(), secrets(fakes), fakes.chain.opened]).toEqual([undefined, 0, []]);
  });

  it('shows what can be locked before anything is, and until when once it is', async () => {
    const term = { term: { durationSeconds: 86_400 } };
    const fakes = await consumerFakes({
      lease: lease({ ...term, approval: 'Manual' }, { metadata: { finalizers: [] } }),
    });
    await fakes.reconcile();
    expect(fakes.condition('Ready')).toBe('False AwaitingApproval');
    // Two hours of a day.
    expect(fakes.lease()?.status?.cost).toMatchObject({ lockable: '0.72', escrowed: '0' });
    expect(fakes.lease()?.status?.cost?.lockedUntil).toBeUndefined();
    fakes.cluster.change<GpuLease & KubeObject>(resources.gpuLeases, key, (one) => {
      one.spec.approvedQuoteHash = one.status!.quote!.hash;
    });
    await untilReady(fakes);
    const escrow = fakes.chain.model.leases.get(fakes.chain.opened[0]!)!;
    const until = new Date((escrow.endsAt + fakes.chain.model.claimWindowSeconds) * 1000).toISOString();
    const { cost } = fakes.lease()!.status!;
    expect(cost).toMatchObject({ lockable: '0.72', escrowed: '0.72', lockedUntil: until.replace('.000Z', 'Z') });
    fakes.chain.unreachable = true;
    await fakes.reconcile();
    expect(fakes.lease()?.status?.cost?.lockedUntil).toBe(cost?.lockedUntil);
  });

  it('that is gone is left alone', async () => {
    const fakes = await consumerFakes();
    fakes.cluster.erase(resources.gpuLeases, key);
    await expect(fakes.reconcile()).resolves.toEqual({});
  });
});

describe('what must be remembered is stored first', () => {
  it('the finalizer before anybody is asked', async () => {
    const fakes = await consumerFakes();
    await untilReady(fakes);
    expect(first(fakes, 'patch gpuleases')).toBeLessThan(first(fakes, 'gateway.quote'));
  });

  it('the quote, then the deposit, before the escrow is opened', async () => {
    const fakes = await consumerFakes();
    await untilReady(fakes);
    expect(first(fakes, 'create secrets')).toBeLessThan(first(fakes, 'money.open'));
    expect(first(fakes, 'replace secrets')).toBeLessThan(first(fakes, 'money.open'));
    expect(first(fakes, 'money.open')).toBeLessThan(first(fakes, 'gateway.allocate'));
  });

  it('nothing is opened when the deposit could not be stored', async () => {
    const fakes = await consumerFakes();
    fakes.cluster.failNext({ resource: 'secrets', method: 'PUT', fail: 'unreachable', times: 50 });
    await expect(untilReady(fakes)).rejects.toThrow();
    expect(fakes.steps).not.toContain('money.open');
  });

  it('the seconds before they are signed', async () => {
    const fakes = await consumerFakes();
    await untilReady(fakes);
    fakes.seconds += 60;
    fakes.steps.length = 0;
    await fakes.reconcile();
    const signing = fakes.steps.findIndex((s) => s.startsWith('money.signVoucher'));
    expect(fakes.steps.slice(0, signing)).toContain('replace secrets');
    expect(fakes.steps[signing + 1]).toBe('gateway.vouch');
  });

  it('nothing is signed when the seconds could not be stored', async () => {
    const fakes = await consumerFakes();
    await untilReady(fakes);
    fakes.seconds += 60;
    fakes.steps.length = 0;
    fakes.cluster.failNext({ resource: 'secrets', method: 'PUT', fail: 503 });
    await expect(fakes.reconcile()).rejects.toThrow();
    expect(fakes.steps.filter((s) => s.startsWith('money.signVoucher'))).toEqual([]);
  });

  it('the record goes before the finalizer', async () => {
    const fakes = await consumerFakes();
    await untilReady(fakes);
    await deleteLease(fakes);
    await untilGone(fakes);
    const removed = fakes.steps.lastIndexOf('delete secrets');
    expect(removed).toBeGreaterThan(0);
    expect(removed).toBeLessThan(fakes.steps.lastIndexOf('patch gpuleases'));
  });
});

describe('a process that dies at any step', async () => {
  const whole = await consumerFakes();
  await wholeLife(whole);
  const count = whole.steps.length;

  it.each(['before', 'after'] as const)(`%s each of its ${count} steps costs one escrow and no money`, async (when) => {
    for (let step = 1; step <= count; step++) {
      const fakes = await consumerFakes();
      fakes.crashAt = { step, when };
      const where = `died ${when} step ${step} (${whole.steps[step - 1]})`;
      await wholeLife(fakes).catch((error: Error) => {
        throw new Error(`${where}: ${error.message}`);
      });
      expect(fakes.chain.opened, where).toHaveLength(1);
      const { deposited, paid, fee, refunded, held } = totals(fakes);
      expect([deposited, held], where).toEqual([360_000n, 0n]);
      expect(paid + fee + refunded, where).toBe(deposited);
      expect([secrets(fakes), fakes.node], where).toEqual([0, undefined]);
      // Billed no more than was signed, signed no more than passed between Ready and the end.
      const escrow = fakes.chain.model.leases.get(fakes.chain.opened[0]!)!;
      expect(escrow.servedSeconds, where).toBe(fakes.gateway.vouchers.at(-1)!.servedSeconds);
      expect(escrow.servedSeconds, where).toBeLessThanOrEqual(fakes.seconds);
    }
  }, 120_000);

  it('comes back to the same record', async () => {
    const fakes = await consumerFakes();
    await untilReady(fakes);
    const before = fakes.record();
    await fakes.restart();
    // All but the acknowledgement of the last voucher, which is given again.
    expect({ ...fakes.record(), vouchedSeconds: before!.vouchedSeconds }).toEqual(before);
    await fakes.reconcile();
    expect(fakes.record()).toMatchObject({
      quote: before!.quote,
      deposit: before!.deposit,
      startedAt: before!.startedAt,
    });
    expect(fakes.chain.opened).toHaveLength(1);
  });
});

describe('what nobody knows closes nothing', () => {
  const closing = /money\.(requestClose|closeWithRelease|finalize)|gateway\.release|node\.stop/;
  const silences: Record<string, (fakes: Fakes) => void> = {
    'a chain that does not answer': (fakes) => {
      fakes.chain.unreachable = true;
    },
    'a gateway that does not answer': (fakes) => {
      const silence = { ok: false, kind: 'unknown', message: 'no answer' } as const;
      fakes.gateway.outcome = { allocation: silence, vouch: silence, allocate: silence, quote: silence };
    },
    'a gateway that makes no sense': (fakes) => {
      const nonsense = { ok: false, kind: 'invalid', message: 'not JSON' } as const;
      fakes.gateway.outcome = { allocation: nonsense, vouch: nonsense, allocate: nonsense, quote: nonsense };
    },
    'a gateway that does not let us in': (fakes) => {
      const stranger = { ok: false, kind: 'refused', reason: 'Unauthorized', message: 'who are you' } as const;
      fakes.gateway.outcome = { allocation: stranger, vouch: stranger };
    },
  };
  it.each(Object.entries(silences))('%s', async (_, fall) => {
    const fakes = await consumerFakes();
    await untilReady(fakes);
    fall(fakes);
    fakes.steps.length = 0;
    for (let round = 0; round < 20; round++) {
      fakes.seconds += 30;
      await fakes.reconcile();
    }
    expect(fakes.steps.filter((s) => closing.test(s))).toEqual([]);
    expect(fakes.record()).toMatchObject({ attempt: 1 });
    expect(fakes.record()?.end).toBeUndefined();
    // And it goes on where it was.
    fakes.chain.unreachable = false;
    fakes.gateway.outcome = {};
    fakes.seconds += 60;
    await fakes.reconcile();
    expect(ready(fakes)).toBe(true);
  });

  it('an opening whose answer was lost is not opened again', async () => {
    const fakes = await consumerFakes();
    fakes.chain.slow = true;
    await fakes.until(() => fakes.steps.includes('money.approve'), 'the allowance');
    fakes.chain.mine();
    await fakes.until(() => fakes.steps.includes('money.open'), 'the opening');
    await fakes.restart();
    for (let round = 0; round < 5; round++) {
      fakes.seconds += 1;
      await fakes.reconcile();
    }
    expect(fakes.condition('Ready')).toBe('Unknown EscrowPending');
    fakes.chain.mine();
    await untilReady(fakes);
    expect(fakes.chain.opened).toHaveLength(1);
  });

  it('an opening that may still be mined stops another attempt, until its quote has run out at the safe head', async () => {
    const fakes = await consumerFakes();
    fakes.chain.allowance = 2n ** 200n;
    fakes.chain.slow = true;
    await fakes.until(() => fakes.steps.includes('money.open'), 'the opening');
    fakes.seconds = 121;
    await fakes.reconcile();
    expect(fakes.record()?.attempt).toBe(1);
    fakes.seconds = 123;
    await fakes.reconcile();
    expect(fakes.record()?.attempt).toBe(2);
    expect(fakes.lease()?.status?.attempts).toMatchObject([{ number: 1, providerName: 'ams', reason: 'QuoteExpired' }]);
    fakes.chain.mine();
    fakes.chain.slow = false;
    // Both transactions come through at last: the first is too late, and only the second opens.
    expect(fakes.chain.opened).toEqual([fakes.record()?.quote?.leaseId]);
    await untilReady(fakes);
    expect(fakes.chain.opened).toHaveLength(1);
  });
});

describe('a provider that is not as it should be', () => {
  it('and asks for more seconds than were vouched for is not paid them', async () => {
    const fakes = await consumerFakes({ settings: { releaseTimeoutSeconds: 20, closeTimeoutSeconds: 5 } });
    await untilReady(fakes);
    const { leaseId } = fakes.record()!.quote!;
    fakes.gateway.closes = false;
    fakes.gateway.outcome.release = {
      ok: true,
      value: { state: 'Ended', servedSeconds: 3000, signature: releaseSignature(leaseId, 3000) },
    } as never;
    await deleteLease(fakes);
    await untilGone(fakes);
    const escrow = fakes.chain.model.leases.get(leaseId)!;
    expect(escrow).toMatchObject({ closed: true, closeReason: 'ConsumerRequested', claimed: 0n });
    expect(fakes.events).toContainEqual(
      expect.objectContaining({ reason: 'ReleaseRefused', message: expect.stringContaining('it asks for 3000 s') }),
    );
  });

  it('and signs no release is not waited for', async () => {
    const fakes = await consumerFakes({ settings: { releaseTimeoutSeconds: 20 } });
    await untilReady(fakes);
    fakes.gateway.closes = false;
    fakes.gateway.outcome.release = {
      ok: true,
      value: { state: 'Ended', servedSeconds: 0, signature: '0xbad0' },
    } as never;
    await deleteLease(fakes);
    await untilGone(fakes);
    expect(fakes.chain.model.leases.get(fakes.chain.opened[0]!)).toMatchObject({ closeReason: 'ConsumerRequested' });
  });

  it('and does not close is closed with its release', async () => {
    const fakes = await consumerFakes({ settings: { closeTimeoutSeconds: 5 } });
    await untilReady(fakes);
    fakes.gateway.closes = false;
    await deleteLease(fakes);
    await untilGone(fakes);
    expect(fakes.chain.model.leases.get(fakes.chain.opened[0]!)).toMatchObject({ closeReason: 'Released' });
  });

  it('and never answers again is left after its time', async () => {
    const fakes = await consumerFakes({ settings: { releaseTimeoutSeconds: 20 } });
    await untilReady(fakes);
    const silence = { ok: false, kind: 'unknown', message: 'no answer' } as const;
    fakes.gateway.outcome = { allocation: silence, vouch: silence, release: silence };
    await deleteLease(fakes);
    await untilGone(fakes);
    const { deposited, refunded } = totals(fakes);
    expect(refunded).toBe(deposited);
  });

  it('and stops serving before it began is followed by another try, with another escrow', async () => {
    const fakes = await consumerFakes({
      settings: { releaseTimeoutSeconds: 20 },
      lease: lease({ retry: { maxAttempts: 2, avoidFailedProviderSeconds: 0 } }, { metadata: { finalizers: [] } }),
    });
    fakes.gateway.outcome.allocate = {
      ok: true,
      value: allocationInfo({ state: 'Provisioning' }),
    } as never;
    fakes.gateway.outcome.allocation = {
      ok: true,
      value: allocationInfo({ state: 'Ended', reason: 'CapacityLost', message: 'a GPU broke' }),
    } as never;
    fakes.gateway.outcome.release = { ok: false, kind: 'refused', reason: 'LeaseNotFound', message: 'no' };
    await fakes.until(() => fakes.chain.opened.length === 1, 'the first escrow');
    await fakes.until(() => (fakes.record()?.attempt ?? 0) === 2, 'the second attempt');
    fakes.gateway.outcome = {};
    await untilReady(fakes);
    expect(new Set(fakes.chain.opened).size).toBe(2);
    expect(fakes.lease()?.status?.attempts).toMatchObject([{ number: 1, reason: 'ProviderFault' }]);
  });
});

describe('limits', () => {
  it('hold for leases that are decided side by side', async () => {
    const one = await consumerFakes({ provider: provider({ payment: { rails: [rail({ maxEscrow: '0.5' })] } }) });
    one.chain.allowance = 2n ** 200n;
    const names = ['train', 'second', 'third', 'fourth'];
    for (const name of names.slice(1))
      one.cluster.seed(resources.gpuLeases, lease({}, { metadata: { name, uid: `${name}-uid` } }) as never);
    const { reconcileLease } = await import('../../../../operator/controllers/consumer/lease.ts');
    let id = 0;
    const refs = new Map<string, string>();
    const world = {
      ...one.world,
      money: {
        ...one.world.money,
        leaseRef: (uid: string) => {
          if (!refs.has(uid)) refs.set(uid, `0x${String(++id).padStart(64, '6')}`);
          return refs.get(uid)! as `0x${string}`;
        },
      },
    };
    const all = () =>
      Promise.all(names.map((name) => reconcileLease(world)({ namespace: 'ml', name }, new AbortController().signal)));
    await all();
    await all();
    expect(one.chain.opened).toHaveLength(1);
    const deposits = [...world.records.all().values()].filter((r) => r.deposit !== undefined);
    expect(deposits).toHaveLength(1);
  });
});

describe('a quote that is not what was asked for is refused, and costs nothing', () => {
  const other = (digits: number) => `0x${'f'.repeat(digits)}`;
  /** Signed anew by the provider, so that only the field is wrong. */
  const quote = (change: Partial<SignedQuote['quote']>) => (signed: SignedQuote) =>
    resigned({ ...signed, quote: { ...signed.quote, ...change } });
  const node = (change: Partial<SignedQuote['node']>) => (signed: SignedQuote) => {
    const promised = { ...signed.node, ...change };
    return resigned({ ...signed, node: promised, quote: { ...signed.quote, specHash: promiseHashOf(promised) } });
  };
  const resigned = (signed: SignedQuote): SignedQuote => ({ ...signed, signature: signatureOf(signed) });
  const wrong: Record<string, [(signed: SignedQuote) => SignedQuote, string]> = {
    'another provider': [quote({ provider: other(40) }), `the quote is signed for ${other(40)}`],
    'another consumer': [quote({ consumer: other(40) }), 'bound to another consumer'],
    'another lease': [quote({ leaseRef: other(64) }), 'bound to another lease'],
    'another chain': [(s) => resigned({ ...s, chainId: 1 }), 'another rail'],
    'another escrow': [(s) => resigned({ ...s, escrow: other(40) }), 'another rail'],
    'another token': [quote({ token: other(40) }), 'another rail'],
    'a higher price': [
      quote({ pricePerGpuHour: '360001' }),
      'the quote asks 0.360001 for a GPU hour, the offer said 0.36',
    ],
    'more GPUs': [quote({ gpus: 2 }), 'the quote is for 2 GPUs instead of 1'],
    'fewer GPUs promised': [node({ gpus: 3 }), 'instead of 1'],
    'a longer term': [quote({ maxSeconds: 3601 }), 'the quote is for 3601 s instead of 3600'],
    'a shorter term': [quote({ maxSeconds: 3599 }), 'the quote is for 3599 s instead of 3600'],
    'a longer start': [quote({ startTimeoutSeconds: 901 }), 'takes longer to start'],
    'another capacity type': [quote({ capacityType: 1 }), 'another capacity type'],
    'another model': [node({ model: 'L40S' }), 'the quote promises a L40S'],
    'another offer': [node({ offerName: 'old-cards' }), 'the quote is for offer old-cards'],
    'a minimum above what was offered': [
      quote({ minSeconds: 3600 }),
      'the quote has a minimum of 3600 s, the offer said 60',
    ],
    'no time left': [quote({ expiresAt: 0 }), 'has expired already'],
    'hardly any time left': [(s) => quote({ expiresAt: s.quote.expiresAt - 110 })(s), 'too short to open an escrow'],
    'too much time': [(s) => quote({ expiresAt: s.quote.expiresAt + 7200 })(s), 'more than two hours'],
    'a promise that is not signed': [
      (s) => ({ ...s, node: { ...s.node, resources: { ...s.node.resources, cpu: '64' } } }),
      'the signed hash is not that of the promised node',
    ],
    'less CPU than asked for': [
      node({ resources: { cpu: '7', memory: '32Gi', ephemeralStorage: '1Gi' } }),
      '7 of cpu instead of 8',
    ],
    'less memory than asked for': [
      node({ resources: { cpu: '8', memory: '15Gi', ephemeralStorage: '1Gi' } }),
      '15Gi of memory instead of 16Gi',
    ],
    'a signature of somebody else': [(s) => ({ ...s, signature: '0xdead' }), 'the provider did not sign this quote'],
  };
  it.each(Object.entries(wrong))('%s', async (_, [tamper, says]) => {
    const fakes = await consumerFakes({
      lease: lease({ resources: { requests: { cpu: 8, memory: '16Gi' } } }, { metadata: { finalizers: [] } }),
    });
    fakes.gateway.tamper = tamper;
    for (let round = 0; round < 3; round++) await fakes.reconcile();
    expect(fakes.condition('Ready')).toBe('Unknown IdentityMismatch');
    expect(fakes.lease()?.status?.conditions?.find((c) => c.type === 'Ready')?.message).toContain(says);
    expect(fakes.events).toContainEqual(
      expect.objectContaining({ type: 'Warning', message: expect.stringContaining(says) }),
    );
    expect(fakes.steps.filter((s) => /money\.(approve|open)|gateway\.allocate/.test(s))).toEqual([]);
    expect(secrets(fakes)).toBe(0);
  });

  it('while one that asks less, or starts sooner, is taken', async () => {
    const fakes = await consumerFakes();
    fakes.gateway.tamper = quote({ pricePerGpuHour: '300000', startTimeoutSeconds: 60 });
    await untilReady(fakes);
    expect(fakes.lease()?.status?.quote?.pricePerGpuHour).toBe('0.3');
  });

  it.each([
    'CapacityExhausted',
    'Held',
    'RailNotAccepted',
  ])('a refusal (%s) is shown, and costs nothing', async (reason) => {
    const fakes = await consumerFakes();
    fakes.gateway.outcome.quote = { ok: false, kind: 'refused', reason, message: `no: ${reason}` };
    for (let round = 0; round < 3; round++) await fakes.reconcile();
    expect(fakes.lease()?.status?.conditions?.find((c) => c.type === 'Ready')?.message).toContain(`ams: no: ${reason}`);
    expect([fakes.chain.opened, secrets(fakes)]).toEqual([[], 0]);
  });
});
