/** The outbox behind the wallet's own judgement: what it is asked to sign is decoded and checked, whoever asks. */
import { Interface, type Result } from 'ethers';
import type { Address, Hex, Hex32, Quote } from '../../api/messages.ts';
import { gpuToken } from '../../contracts/generated/gpu-token.ts';
import { leaseEscrow } from '../../contracts/generated/lease-escrow.ts';
import { parseAmount } from '../../core/money/amount.ts';
import { type Asked, type AskedOn, isListed, judge, type WalletRules } from '../../core/wallet/judge.ts';
import { type Spent, spentInDay, transactions } from '../../core/wallet/spend.ts';
import { connectEscrow, type EscrowClient, type TokenInfo } from './escrow-client.ts';
import { SignatureMismatch, verifyQuote } from './messages.ts';
import type { Intent, Outbox } from './outbox.ts';
import type { Refusal } from './refusal.ts';
import { NoContract, type Rpc } from './rpc.ts';

/** What whoever pays for leases needs of an outbox; the wallet behind HTTPS is one, too. */
export type Payer = Pick<Outbox, 'address' | 'submit' | 'state' | 'entries' | 'forget'>;

export interface DayLimits {
  /** Whole tokens, by symbol: for each token of that name on each chain. Absent: nothing is limited. */
  readonly amounts?: ReadonlyMap<string, string>;
  readonly transactions?: number;
}

const escrowAbi = new Interface(leaseEscrow.abi);
const tokenAbi = new Interface(gpuToken.abi);

/** Undefined: a call that the wallet does not know. */
export function decodeCall({ to, data }: Pick<Intent, 'to' | 'data'>): Asked | undefined {
  const selector = data.slice(0, 10);
  const of = (abi: Interface) => {
    try {
      const found = abi.parseTransaction({ data });
      // Bytes behind the arguments are nobody's: what is signed is what was read.
      return found && abi.encodeFunctionData(found.name, found.args) === data.toLowerCase() ? found : null;
    } catch {
      return null;
    }
  };
  if (selector === tokenAbi.getFunction('approve')?.selector) {
    const found = of(tokenAbi);
    return found ? { call: 'approve', token: to, spender: found.args[0] as Address } : undefined;
  }
  const found = of(escrowAbi);
  if (!found) return undefined;
  const { name, args } = found;
  switch (name) {
    case 'open':
    case 'openWithPermit':
    case 'openWithAuthorization':
      return { call: 'open', escrow: to, quote: quoteOf(args[0] as Result), deposit: args[3] as bigint };
    case 'topUp':
      return { call: 'topUp', escrow: to, leaseId: args[0] as Hex32, amount: args[1] as bigint };
    case 'closeWithRelease':
    case 'requestClose':
    case 'finalize':
      return { call: name, escrow: to };
    case 'withdraw':
      return { call: 'withdraw', escrow: to, token: args[0] as Address, to: args[1] as Address };
    default:
      return undefined;
  }
}

function quoteOf(tuple: Result): Quote {
  const quote: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(tuple.toObject()))
    quote[name] = typeof value === 'bigint' && !bigFields.has(name) ? Number(value) : value;
  return quote as unknown as Quote;
}
const bigFields: ReadonlySet<string> = new Set(['pricePerGpuHour', 'nonce']);

const refuse = (why: string): { outcome: 'refused'; refusal: Refusal } => ({
  outcome: 'refused',
  refusal: { name: 'WalletRefused', terminal: true, message: `the wallet does not sign this: ${why}`, args: {} },
});

/** For `OutboxOptions.limit`. `tokens` knows all that `spends` may name. */
export function dayLimit(limits: DayLimits, tokens: ReadonlyMap<string, TokenInfo>) {
  return (spent: readonly Spent[], { spends }: Intent, nowSeconds: number): Refusal | undefined => {
    const no = (message: string): Refusal => ({ name: 'DailyLimit', terminal: false, message, args: {} });
    const most = limits.transactions;
    if (most !== undefined && spentInDay(spent, transactions, nowSeconds) >= BigInt(most))
      return no(`the wallet has signed ${most} transactions in a day (--daily-transactions): it goes on as hours pass`);
    if (spends === undefined || limits.amounts === undefined) return undefined;
    const token = tokens.get(spends.what);
    const amount = token && limits.amounts.get(token.symbol);
    if (!token || amount === undefined)
      return no(
        `the wallet was given no limit for ${token?.symbol ?? spends.what}: start it with --daily-limit ${token?.symbol ?? 'SYMBOL'}=AMOUNT`,
      );
    if (spentInDay(spent, spends.what, nowSeconds) + spends.amount > parseAmount(amount, token.decimals))
      return no(
        `this would put more than ${amount} ${token.symbol} into escrows within a day (--daily-limit of the wallet)`,
      );
    return undefined;
  };
}

export function guardedOutbox(options: {
  readonly rpc: Rpc;
  readonly outbox: Outbox;
  readonly rules: WalletRules;
  /** Filled with what `dayLimit` has to know. */
  readonly tokens: Map<string, TokenInfo>;
}): Outbox {
  const { rpc, outbox, rules, tokens } = options;
  const clients = new Map<string, EscrowClient>();

  async function clientOf(escrow: Address, signal?: AbortSignal): Promise<EscrowClient> {
    const name = escrow.toLowerCase();
    const known = clients.get(name);
    if (known) return known;
    const client = await connectEscrow({ rpc, escrow }, signal);
    if (clients.size < 100) clients.set(name, client);
    return client;
  }

  async function look(asked: Asked, data: Hex, signal?: AbortSignal): Promise<AskedOn> {
    const on = { chainId: rpc.chainId, wallet: outbox.address };
    if (asked.call === 'topUp')
      return { ...on, target: await (await clientOf(asked.escrow, signal)).lease(asked.leaseId, 'latest', signal) };
    if (asked.call !== 'open') return on;
    const signature = escrowAbi.parseTransaction({ data })?.args[1] as Hex;
    const domain = { chainId: rpc.chainId, escrow: asked.escrow };
    try {
      await verifyQuote(domain, { message: asked.quote, signature }, rpc);
      return { ...on, signedByProvider: true };
    } catch (error) {
      if (error instanceof SignatureMismatch) return { ...on, signedByProvider: false };
      throw error;
    }
  }

  return {
    ...outbox,
    async submit(intent, signal) {
      const asked = decodeCall(intent);
      if (!asked) return refuse('it is no call of an escrow or token that it knows');
      // A contract that is not listed is not even asked: it may be anything.
      if ('escrow' in asked && !isListed(rules, rpc.chainId, asked.escrow))
        return refuse(`escrow ${asked.escrow} is not listed`);
      let on: AskedOn;
      try {
        on = await look(asked, intent.data, signal);
      } catch (error) {
        if (error instanceof NoContract) return refuse(error.message);
        throw error;
      }
      const verdict = judge(asked, on, rules);
      if (!verdict.sign) return refuse(verdict.why);
      const { spends } = verdict;
      if (!spends) return outbox.submit({ key: intent.key, to: intent.to, data: intent.data }, signal);
      const what = spends.token.toLowerCase();
      if (!tokens.has(what) && tokens.size < 1000 && 'escrow' in asked)
        tokens.set(what, await (await clientOf(asked.escrow, signal)).token(spends.token, signal));
      return outbox.submit(
        { key: intent.key, to: intent.to, data: intent.data, spends: { what, amount: spends.amount } },
        signal,
      );
    },
  };
}
