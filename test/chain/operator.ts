/** The operator's look at one lease: production reads and decisions over the endpoints that misbehave, around an escrow that is real. */
import type { ChainKey } from '../../operator/adapters/chain/key.ts';
import { createLeaseMoney } from '../../operator/adapters/chain/lease-money.ts';
import { hashQuote, quoteToJson, signQuote } from '../../operator/adapters/chain/messages.ts';
import type { Outbox } from '../../operator/adapters/chain/outbox.ts';
import type { Rpc } from '../../operator/adapters/chain/rpc.ts';
import type { Verdict } from '../../operator/api/conditions.ts';
import type { Action } from '../../operator/core/lease/actions.ts';
import {
  type ChainFact,
  intents,
  type Observed,
  type QuoteRecord,
  type Refused,
} from '../../operator/core/lease/observed.ts';
import { type Plan, planLease } from '../../operator/core/lease/plan.ts';
import { defaultLowWaterSeconds } from '../../operator/core/money/deposit.ts';
import {
  allocated,
  factsOf,
  lease,
  observed,
  provider,
  providerFact,
  quoteRecord,
  rail,
  settings,
  signedQuote,
} from '../support/builders.ts';
import type { ChainLab, OpenLease } from './lab.ts';

export interface Look {
  readonly chain: ChainFact;
  readonly plan: Plan;
  readonly ready: Verdict;
}

export interface Operator {
  readonly money: ReturnType<typeof createLeaseMoney>;
  /** What the operator remembers of the quote of this lease. */
  remember(lease: Pick<OpenLease, 'leaseId' | 'quote'>): Promise<QuoteRecord>;
  look(seen: Partial<Observed> & Required<Pick<Observed, 'record' | 'now'>>): Promise<Look>;
  /** Does what is wished for of money, and remembers what is refused. */
  obey(actions: readonly Action[]): Promise<void>;
}

export function startOperator(
  lab: ChainLab,
  parts: { rpc: Rpc; outbox: Outbox; wallet?: ChainKey; monotonicMs?: () => number },
): Operator {
  const { chain } = lab;
  const { chainId, domain } = chain.client;
  const money = createLeaseMoney({
    wallet: parts.wallet ?? chain.keys.consumer,
    session: chain.keys.session,
    clusterUid: 'test',
    chains: new Map([[chainId, { chainId, rpc: async () => parts.rpc, outbox: async () => parts.outbox }]]),
    monotonicMs: parts.monotonicMs ?? (() => performance.now()),
  });
  const refused = new Map<string, Refused>();
  const rails = [rail({ chainId, escrow: domain.escrow, token: chain.usdc, maxEscrow: '100000' })];
  const submit = async (key: string, wish: Promise<Refused | undefined>) => {
    const refusal = await wish;
    if (refusal) refused.set(key, refusal);
    else refused.delete(key);
  };

  return {
    money,
    async remember({ leaseId, quote }) {
      const { signature } = await signQuote(chain.keys.provider, domain, quote);
      const signed = signedQuote({}, { chainId, escrow: domain.escrow, signature });
      return quoteRecord(
        {},
        { leaseId, hash: hashQuote(domain, quote), signed: { ...signed, quote: quoteToJson(quote) } },
      );
    },
    async look(seen) {
      const quote = seen.record.quote!;
      const fact = await money.facts(quote, seen.record);
      const known: ChainFact =
        fact.state === 'known'
          ? {
              ...fact,
              txs: {
                ...Object.fromEntries([...refused].map(([key, one]) => [key, { state: 'refused', refused: one }])),
                ...fact.txs,
              },
            }
          : fact;
      const plan = planLease(
        observed({
          lease: lease({ term: { durationSeconds: quote.signed.quote.maxSeconds } }),
          providers: factsOf(providerFact({ provider: provider({ payment: { rails } }) })),
          allocation: allocated(),
          settings: settings({ lowWaterSeconds: defaultLowWaterSeconds, maxEscrow: () => 10n ** 12n }),
          ...seen,
          chain: known,
        }),
      );
      return { chain: known, plan, ready: plan.conditions.find((one) => one.type === 'Ready')! };
    },
    async obey(actions) {
      for (const action of actions) {
        if (action.do === 'approveToken') {
          const { chainId: id, quote } = action.quote.signed;
          await submit(intents.approve(id, quote.token), money.approve(action.quote, action.amount));
          refused.delete(intents.open(action.quote.leaseId));
        } else if (action.do === 'openEscrow')
          await submit(intents.open(action.quote.leaseId), money.open(action.quote, action.deposit, action.way));
        else if (action.do === 'topUp')
          await submit(
            intents.topUp(action.quote.leaseId, action.total),
            money.topUp(action.quote, action.amount, action.total),
          );
      }
    },
  };
}
