/** Of several tokens and chains the cheapest is taken, and what each would cost is shown. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { LeaseSpec } from '../../../../operator/api/lease.ts';
import type { Address } from '../../../../operator/api/messages.ts';
import { railName } from '../../../../operator/core/lease/exposure.ts';
import { matchOffers } from '../../../../operator/core/offer/match.ts';
import { type Candidate, type KnownRail, parseValue, rank, type Values } from '../../../../operator/core/offer/rank.ts';
import { factsOf, lease, observed, offer, provider, providerFact, rail, settings } from '../../../support/builders.ts';

const gwei = 10n ** 9n;
const address = (digit: string): Address => `0x${digit.repeat(40)}`;
/** One stablecoin on two chains, and the network's own token, without fee, on the second. */
const usdcOne: KnownRail = { ...rail(), decimals: 6, feeBps: 200, gasPrice: 20n * gwei };
const usdcTwo: KnownRail = {
  ...rail({ chainId: 42161, token: address('8') }),
  decimals: 6,
  feeBps: 200,
  gasPrice: gwei / 10n,
};
const gpuTwo: KnownRail = {
  ...rail({ chainId: 42161, token: address('9'), assetSymbol: 'GPU' }),
  decimals: 18,
  feeBps: 0,
  gasPrice: gwei / 10n,
};
const rails = [usdcOne, usdcTwo, gpuTwo];

const valued = (tokens: Record<string, string>, gas: Record<number, string> = {}): Values => ({
  token: (symbol) => (tokens[symbol] === undefined ? undefined : parseValue(tokens[symbol])),
  gas: (chainId) => (gas[chainId] === undefined ? undefined : parseValue(gas[chainId])),
});
const ether = { 31337: '3000', 42161: '3000' };

const pricing = {
  assetSymbol: 'USDC',
  maxPricePerGpuHour: '0.60',
  alternatives: [{ assetSymbol: 'GPU', maxPricePerGpuHour: '2' }],
};

function look(change: {
  values?: Values;
  rails?: readonly KnownRail[];
  gpuPrice?: string;
  usdcPrice?: string;
  pricing?: LeaseSpec['pricing'];
  /** What other leases have in escrows, by rail. */
  locked?: Readonly<Record<string, bigint>>;
}) {
  const known = change.rails ?? rails;
  const plain = known.map(({ chainId, escrow, token, assetSymbol, maxEscrow }) => ({
    chainId,
    escrow,
    token,
    assetSymbol,
    maxEscrow,
  }));
  const match = matchOffers({
    ...observed({
      lease: lease({ pricing: change.pricing ?? pricing }),
      offers: [
        offer({
          prices: [
            { assetSymbol: 'USDC', perGpuHour: change.usdcPrice ?? '0.36' },
            { assetSymbol: 'GPU', perGpuHour: change.gpuPrice ?? '0.72' },
          ],
        }),
      ],
      providers: factsOf(
        providerFact({
          provider: provider({ payment: { rails: plain } }),
          rails: known,
          held: { leases: 1, gpus: 1, perHour: {}, locked: change.locked ?? {} },
        }),
      ),
      settings: settings({ values: change.values }),
    }),
    avoid: [],
  });
  return {
    ...match,
    order: match.candidates.map((one) => `${one.rail.assetSymbol} on ${one.rail.chainId}`),
  };
}

describe('of several rails', () => {
  it.each<[string, Parameters<typeof look>[0], readonly string[]]>([
    [
      'the cheaper token is taken, by what the tokens are worth',
      { values: valued({ USDC: '1', GPU: '0.49' }) },
      ['GPU on 42161', 'USDC on 31337', 'USDC on 42161'],
    ],
    [
      'the same token is dearer when it is worth more',
      { values: valued({ USDC: '1', GPU: '0.51' }) },
      ['USDC on 31337', 'USDC on 42161', 'GPU on 42161'],
    ],
    [
      'the chain whose gas is cheaper is taken, at one price',
      { values: valued({ USDC: '1', GPU: '0.51' }, ether) },
      // Opening costs 0.00002 ether on the one and 0.0046 on the other: 13.80 against 0.07.
      ['USDC on 42161', 'GPU on 42161', 'USDC on 31337'],
    ],
    [
      'gas is left out where its worth is known on one chain alone',
      { values: valued({ USDC: '1', GPU: '0.51' }, { 31337: '3000' }) },
      ['USDC on 31337', 'USDC on 42161', 'GPU on 42161'],
    ],
    [
      'the token named first is taken where nobody said what they are worth',
      { gpuPrice: '0.01' },
      ['USDC on 31337', 'USDC on 42161', 'GPU on 42161'],
    ],
    [
      'the token named first is taken where only one is known',
      { gpuPrice: '0.01', values: valued({ GPU: '0.01' }) },
      ['USDC on 31337', 'USDC on 42161', 'GPU on 42161'],
    ],
    [
      'one whose chain does not answer comes last, however cheap',
      { rails: [{ ...usdcOne, silent: true }, usdcTwo] },
      ['USDC on 42161', 'USDC on 31337'],
    ],
    [
      'one without gas, or with too few tokens, comes last',
      {
        rails: [
          { ...usdcOne, wallet: { balance: 10n ** 12n, gas: 0n } },
          { ...gpuTwo, wallet: { balance: 1n, gas: 1n } },
          { ...usdcTwo, wallet: { balance: 10n ** 12n, gas: 1n } },
        ],
      },
      ['USDC on 42161', 'USDC on 31337', 'GPU on 42161'],
    ],
    [
      'one in a token that the lease does not take is none',
      { pricing: { assetSymbol: 'USDC', maxPricePerGpuHour: '0.60' } },
      ['USDC on 31337', 'USDC on 42161'],
    ],
    [
      'one above the limit of its own token is none',
      { gpuPrice: '2.000001', values: valued({ USDC: '1', GPU: '0.01' }) },
      ['USDC on 31337', 'USDC on 42161'],
    ],
    ['an alternative will do where the first token is too dear', { usdcPrice: '0.61' }, ['GPU on 42161']],
  ])('%s', (_, change, order) => {
    expect(look(change).order).toEqual(order);
  });

  it('passes over one that is full, and shows why', () => {
    const { order, selection } = look({ locked: { [railName(usdcOne)]: 99_640_001n } });
    expect(order).toEqual(['USDC on 42161', 'GPU on 42161']);
    expect(selection.rails?.map((one) => [one.assetSymbol, one.chainId, one.note])).toEqual([
      ['USDC', 42161, undefined],
      ['GPU', 42161, undefined],
      ['USDC', 31337, 'maxEscrow 100 USDC on chain 31337 is reached'],
    ]);
  });

  it('names each rail that is full where all are', () => {
    const { order, blocked, selection } = look({
      locked: { [railName(usdcOne)]: 10n ** 8n, [railName(usdcTwo)]: 10n ** 8n, [railName(gpuTwo)]: 10n ** 20n },
    });
    expect([order, selection.rails]).toEqual([[], undefined]);
    expect(blocked?.reason).toBe('LimitReached');
    expect(blocked?.message).toContain(
      'closest maxEscrow 100 USDC on chain 31337, maxEscrow 100 USDC on chain 42161, maxEscrow 100 GPU on chain 42161',
    );
  });

  it('shows what each would cost, its fee, its worth, and what stands in the way', () => {
    const { selection } = look({
      rails: [{ ...usdcOne, silent: true }, gpuTwo],
      values: valued({ USDC: '1', GPU: '0.49' }),
    });
    expect(selection.rails).toEqual([
      {
        chainId: 42161,
        assetSymbol: 'GPU',
        providerName: 'ams',
        pricePerGpuHour: '0.72',
        total: '0.72',
        fee: '0',
        value: '0.3528',
      },
      {
        chainId: 31337,
        assetSymbol: 'USDC',
        providerName: 'ams',
        pricePerGpuHour: '0.36',
        total: '0.36',
        fee: '0.0072',
        value: '0.36',
        note: 'chain 31337 does not answer',
      },
    ]);
    expect(selection.eligible).toBe(1);
  });

  it('takes the least of all, for any prices, decimals and worths, whatever the order they come in', () => {
    const price = fc.integer({ min: 1, max: 5_000_000 });
    const way = fc.record({
      chainId: fc.constantFrom(1, 10, 42161),
      assetSymbol: fc.constantFrom('USDC', 'GPU'),
      decimals: fc.constantFrom(6, 18),
      micro: price,
      gasPrice: fc.bigInt({ min: 1n, max: 10n ** 12n }),
    });
    fc.assert(
      fc.property(
        fc.array(way, { minLength: 1, maxLength: 8 }),
        fc.bigInt({ min: 1n, max: 10n ** 8n }),
        fc.bigInt({ min: 1n, max: 10n ** 8n }),
        fc.bigInt({ min: 0n, max: 10n ** 10n }),
        (ways, usdcWorth, gpuWorth, gasWorth) => {
          const asked = lease({ pricing });
          const values: Values = {
            token: (symbol) => (symbol === 'USDC' ? usdcWorth : gpuWorth),
            gas: () => gasWorth,
          };
          const candidates: readonly Candidate[] = ways.map(
            ({ chainId, assetSymbol, decimals, micro, gasPrice }, at) => ({
              offer: offer({}, {}, { name: `o${at}` }),
              provider: provider(),
              rail: { ...rail({ chainId, assetSymbol }), decimals, gasPrice },
              pricePerGpuHour: BigInt(micro) * 10n ** BigInt(decimals - 6),
            }),
          );
          // For an hour of one GPU, in 10⁻²⁴ of the unit.
          const costs = ways.map(
            ({ assetSymbol, micro, gasPrice }) =>
              BigInt(micro) * 10n ** 12n * values.token(assetSymbol)! + 230_000n * gasPrice * gasWorth,
          );
          const least = costs.reduce((a, b) => (b < a ? b : a));
          const [first] = rank(candidates, asked, values);
          expect(costs[candidates.indexOf(first!)]).toBe(least);
          const names = (some: readonly Candidate[]) => rank(some, asked, values).map((one) => one.offer.metadata.name);
          expect(names(candidates.toReversed())).toEqual(names(candidates));
        },
      ),
    );
  });
});
