/**
 * The price of an H100 as it was seen in October 2026: 6.15 a GPU hour, twelve days later 2.40, here within one lease. What runs
 * pays what was quoted, and what waits is quoted anew.
 */
import { describe, expect, it } from 'vitest';
import type { SignedQuote } from '../../../../operator/api/gateway.ts';
import type { LeaseWorld } from '../../../../operator/controllers/consumer/world.ts';
import { parseAmount } from '../../../../operator/core/money/amount.ts';
import { lease, offer } from '../../../support/builders.ts';
import { consumerFakes, type Fakes, promiseHashOf, signatureOf } from '../../../support/consumer-fakes.ts';

const [dear, cheap] = ['6.15', '2.40'] as const;
const model = 'H100-SXM';
const ready = (fakes: Fakes) => fakes.condition('Ready') === 'True Serving';
const quoted = (fakes: Fakes) => fakes.record()?.quote?.signed.quote.pricePerGpuHour;
const units = (price: string) => String(parseAmount(price, 6));
const quotes = (fakes: Fakes) => fakes.steps.filter((one) => one === 'gateway.quote').length;

interface Market extends Fakes {
  /** What the offer shows, and what the gateway signs. */
  price(shown: string, signed?: string): void;
}

async function market(maxPricePerGpuHour = '6.20', termSeconds = 3600): Promise<Market> {
  const wish = lease(
    {
      gpu: { models: [model], count: 1, interconnect: 'Any' },
      pricing: { maxPricePerGpuHour, assetSymbol: 'USDC' },
      term: { durationSeconds: termSeconds },
      drainTimeoutSeconds: 10,
    },
    { metadata: { finalizers: [] } },
  );
  const fakes = (await consumerFakes({ lease: wish })) as Market & { world: LeaseWorld };
  let [shown, signs] = [dear, dear] as string[];
  fakes.gateway.tamper = (signed: SignedQuote) => {
    const node = { ...signed.node, model } as const;
    const quote = { ...signed.quote, pricePerGpuHour: units(signs!), specHash: promiseHashOf(node) };
    const made = { ...signed, node, quote };
    return { ...made, signature: signatureOf(made) };
  };
  fakes.world = {
    ...fakes.world,
    offers: {
      ...fakes.world.offers,
      list: () => [
        offer({ model, prices: [{ assetSymbol: 'USDC', perGpuHour: shown! }] }, { product: 'NVIDIA-H100-80GB-HBM3' }),
      ],
    },
  };
  fakes.price = (now, signed = now) => {
    [shown, signs] = [now, signed];
  };
  return fakes;
}

describe('a running lease', () => {
  it('pays what it was quoted, whatever offers cost meanwhile', async () => {
    const fakes = await market();
    await fakes.until(() => ready(fakes), 'Ready');
    const before = fakes.record()!.quote;
    const shown = fakes.lease()!.status!;
    for (const price of [cheap, cheap, cheap, dear, dear]) {
      fakes.price(price);
      fakes.seconds += 600;
      await fakes.reconcile();
      expect(ready(fakes)).toBe(true);
      expect(fakes.lease()!.status).toMatchObject({ quote: shown.quote, cost: { ratePerHour: '6.15' } });
    }
    fakes.seconds += 550;
    await fakes.until(() => fakes.lease()?.status?.endedAt !== undefined, 'the end of its term');
    expect(fakes.record()!.quote).toEqual(before);
    expect([quotes(fakes), fakes.chain.opened.length]).toEqual([1, 1]);
    const escrow = fakes.chain.model.leases.get(fakes.chain.opened[0]!)!;
    expect(escrow.servedSeconds).toBeGreaterThan(3000);
    expect(escrow.claimed).toBe((BigInt(escrow.servedSeconds) * 6_150_000n) / 3600n);
    expect(fakes.lease()?.status).toMatchObject({ endReason: 'Expired' });
  });

  it('is topped up at the price of its quote', async () => {
    const fakes = await market('6.20', 20_000);
    await fakes.until(() => ready(fakes), 'Ready');
    fakes.price(cheap);
    fakes.seconds += 5600;
    await fakes.reconcile();
    const escrow = () => fakes.chain.model.leases.get(fakes.chain.opened[0]!)!;
    expect(escrow().pricePerGpuHour).toBe(6_150_000n);
    // Two hours from where it stands.
    const covered = (escrow().deposit * 3600n) / 6_150_000n;
    expect(Number(covered)).toBeGreaterThan(5600 + 7100);
    expect(quotes(fakes)).toBe(1);
  });
});

describe('a lease that waits for money', () => {
  async function waiting(): Promise<Market> {
    const fakes = await market();
    fakes.chain.balance = 0n;
    await fakes.reconcile();
    expect(fakes.condition('Ready')).toBe('False InsufficientFunds');
    expect(quoted(fakes)).toBe(units(dear));
    return fakes;
  }

  it('is quoted anew when the price falls, and opens at that', async () => {
    const fakes = await waiting();
    fakes.price(cheap);
    await fakes.reconcile();
    expect(quoted(fakes)).toBe(units(cheap));
    expect(fakes.lease()?.status?.quote).toMatchObject({ pricePerGpuHour: '2.4', totalForTerm: '2.4' });
    fakes.chain.balance = 1_000_000_000n;
    await fakes.until(() => ready(fakes), 'Ready');
    expect(fakes.chain.model.leases.get(fakes.chain.opened[0]!)).toMatchObject({
      pricePerGpuHour: 2_400_000n,
      deposit: 2_400_000n,
    });
  });

  it('keeps the cheaper quote when the price comes back, for as long as that was signed for', async () => {
    const fakes = await waiting();
    fakes.price(cheap);
    await fakes.reconcile();
    fakes.price(dear);
    for (let i = 0; i < 3; i++) {
      fakes.seconds += 15;
      await fakes.reconcile();
    }
    expect([quoted(fakes), quotes(fakes)]).toEqual([units(cheap), 2]);
    fakes.seconds += 120;
    await fakes.reconcile();
    expect(quoted(fakes)).toBe(units(dear));
  });

  it('keeps its quote where the provider shows the new price and signs the old one', async () => {
    const fakes = await waiting();
    const before = fakes.record()!.quote;
    fakes.price(cheap, dear);
    await fakes.reconcile();
    expect(fakes.record()!.quote).toEqual(before);
    expect(fakes.events.at(-1)).toMatchObject({
      reason: 'IdentityMismatch',
      message: 'ams: the quote asks 6.15 for a GPU hour, the offer said 2.4',
    });
    const asked = quotes(fakes);
    await fakes.reconcile();
    await fakes.reconcile();
    expect(quotes(fakes)).toBe(asked);
  });

  it('that would pay no more than 3 waits until the price has fallen', async () => {
    const fakes = await market('3');
    await fakes.reconcile();
    expect(fakes.condition('Ready')).toBe('Unknown PriceAboveLimit');
    fakes.price(cheap);
    await fakes.until(() => ready(fakes), 'Ready');
    expect(quoted(fakes)).toBe(units(cheap));
  });
});
