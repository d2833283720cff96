/** Whatever is leased, at whatever price, however it is settled: the receipt is the model's, to the base unit, and verifies. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { proofsOf } from '../../../../operator/adapters/chain/receipt-proofs.ts';
import { type ExampleLease, exampleReceipt } from '../../../../operator/cmd/example-papers.ts';
import { formatAmount, parseAmount } from '../../../../operator/core/money/amount.ts';
import { priceOf } from '../../../../operator/core/money/price.ts';
import { focusRows } from '../../../../operator/core/receipt/focus.ts';
import { quotedVsBilled } from '../../../../operator/core/receipt/ratio.ts';
import { statementOf } from '../../../../operator/core/receipt/statement.ts';
import { faultsOf } from '../../../../operator/core/receipt/verify.ts';

const leases: fc.Arbitrary<ExampleLease> = fc
  .record({
    asset: fc.constantFrom('USDC', 'GPU'),
    price: fc.bigInt({ min: 1n, max: 20_000_000n }),
    gpus: fc.integer({ min: 1, max: 16 }),
    maxSeconds: fc.integer({ min: 60, max: 2_592_000 }),
    served: fc.integer({ min: 0, max: 2_592_000 }),
    splits: fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 4 }),
    covered: fc.double({ min: 0, max: 1, noNaN: true }),
    referrerBps: fc.constantFrom(0, 1, 2500, 5000),
    vanishes: fc.boolean(),
    seed: fc.integer({ min: 0, max: 1_000_000 }),
  })
  .map(({ asset, price, gpus, maxSeconds, served, splits, covered, referrerBps, vanishes, seed }) => {
    const decimals = asset === 'USDC' ? 6 : 18;
    // Odd digits at the very end, so that every division leaves something.
    const pricePerGpuHour = formatAmount(asset === 'USDC' ? price : price * 10n ** 12n + 7n, decimals);
    const perHour = parseAmount(pricePerGpuHour, decimals);
    const servedSeconds = Math.min(served, maxSeconds);
    const [low, high] = [priceOf(60, gpus, perHour), priceOf(maxSeconds, gpus, perHour)];
    return {
      name: `lease-${seed}`,
      offerName: 'rtx4090',
      model: 'RTX4090',
      asset,
      pricePerGpuHour,
      gpus,
      maxSeconds,
      deposit: low + ((high - low) * BigInt(Math.floor(covered * 1000))) / 1000n,
      openedAt: 1_795_683_600,
      servedSeconds,
      settledAt: splits.map((part) => Math.floor(part * servedSeconds)).sort((a, b) => a - b),
      referrerBps,
      vanishes,
    } as const;
  });

test('the receipt is the model’s', { timeout: 60_000 }, async () => {
  await fc.assert(
    fc.asyncProperty(leases, async (lease) => {
      const { receipt, escrow, credits } = await exampleReceipt(lease);
      expect(faultsOf(receipt, await proofsOf(receipt, receipt))).toEqual([]);
      const { settlement, quote, asset } = receipt;
      const units = (field: 'paid' | 'fee' | 'referrerFee' | 'refunded' | 'deposit' | 'claimed') =>
        BigInt(settlement[field]);
      // Who got what, by the model's own accounts.
      expect({
        payee: units('paid'),
        feeRecipient: units('fee') - units('referrerFee'),
        referrer: units('referrerFee'),
        consumer: units('refunded'),
      }).toEqual(credits);
      expect(units('paid') + units('fee') + units('refunded')).toBe(units('deposit'));
      expect(units('claimed')).toBe(escrow.claimed);
      // Never above what the quote says of these seconds.
      const quoted = priceOf(settlement.servedSeconds, quote.quote.gpus, BigInt(quote.quote.pricePerGpuHour));
      expect(units('claimed')).toBeLessThanOrEqual(quoted);
      expect(quotedVsBilled(receipt) ?? 1).toBeLessThanOrEqual(1);

      const { lease: about } = receipt;
      const month = {
        clusterUid: about.clusterUid,
        namespace: 'ml',
        month: new Date(settlement.closingAt * 1000).toISOString().slice(0, 7),
      };
      const [total] = statementOf([receipt], month).totals;
      expect(parseAmount(total!.billed, asset.decimals)).toBe(escrow.claimed);
      expect(parseAmount(total!.refunded, asset.decimals)).toBe(escrow.refunded);

      const [row] = focusRows([receipt], { currency: 'USD', rates: new Map([[asset.symbol, '1.0345']]) });
      if (escrow.claimed === 0n) expect(row).toBeUndefined();
      else {
        expect(parseAmount(row!.PricingCurrencyEffectiveCost!, asset.decimals)).toBe(escrow.claimed);
        // FOCUS' own rule: quantity × unit price = cost, to the places that are written.
        const exact = (text: string | null) => parseAmount(text!, 36);
        const product = exact(row!.PricingQuantity) * exact(row!.ContractedUnitPrice);
        const off = product - exact(row!.ContractedCost) * 10n ** 36n;
        const half = (exact(row!.ContractedUnitPrice) * 10n ** 18n) / 2n;
        expect(off < 0n ? -off : off).toBeLessThanOrEqual(half);
      }
    }),
    { numRuns: 300 },
  );
});
