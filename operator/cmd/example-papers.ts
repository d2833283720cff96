/**
 * The papers of the sandbox's scenario, for the reference: its three leases, played on the escrow's model instead of a chain,
 * with keys that everybody can make, so that the same papers come out every time. `npm run sandbox -- --exit --papers DIR`
 * writes those of a real run.
 */
import { id } from 'ethers';
import { type ChainKey, keyFromHex } from '../adapters/chain/key.ts';
import {
  hashJson,
  hashQuote,
  leaseIdOf,
  leaseRefOf,
  quoteToJson,
  signQuote,
  signRelease,
  signVoucher,
} from '../adapters/chain/messages.ts';
import { sealReceipt } from '../adapters/chain/receipt-proofs.ts';
import type { SignedQuote } from '../api/gateway.ts';
import type { Address, Hex32, MessageDomain, Quote } from '../api/messages.ts';
import type { Receipt } from '../api/receipt.ts';
import {
  applyEvent,
  type Charge,
  type Customer,
  emptyAccount,
  invoiceNumber,
  microsOf,
} from '../core/invoice/account.ts';
import { type Invoice, invoiceHtml, invoiceOf } from '../core/invoice/invoice.ts';
import type { LeaseRecord, QuoteRecord } from '../core/lease/observed.ts';
import { parseAmount } from '../core/money/amount.ts';
import { sizeDeposit } from '../core/money/deposit.ts';
import type { Escrow } from '../core/money/escrow.ts';
import { callEscrow, creditOf, type EscrowCall, newEscrowModel } from '../core/money/model.ts';
import { graceSeconds } from '../core/money/price.ts';
import { buildReceipt } from '../core/receipt/build.ts';
import { focusCsv, focusRows, focusSchema } from '../core/receipt/focus.ts';
import { statementCsv, statementMarkdown, statementOf } from '../core/receipt/statement.ts';

/** Worth nothing: anybody can make them from their names. */
const keyOf = (role: string): ChainKey => keyFromHex(id(`gpulease example: ${role}`));
const addressOf = (role: string): Address => `0x${id(`gpulease example: ${role}`).slice(26)}`;

export const exampleKeys = {
  consumer: keyOf('consumer'),
  session: keyOf('session'),
  provider: keyOf('provider'),
  stranger: keyOf('stranger'),
};
export const exampleChain: MessageDomain = { chainId: 31337, escrow: addressOf('escrow') };
export const exampleClusterUid = '7d0b6f1c-4c52-4b0e-9d5e-8f6f0a4a1c11';
const networkId = id('gpulease') as Hex32;
const feeRecipient = addressOf('fee recipient');
const zeroAddress: Address = `0x${'0'.repeat(40)}`;
const owner = addressOf('owner');

const tokens = {
  USDC: { address: addressOf('USDC'), decimals: 6, feeBps: 200 },
  GPU: { address: addressOf('GPU'), decimals: 18, feeBps: 0 },
} as const;

export interface ExampleLease {
  readonly name: string;
  readonly namespace?: string;
  readonly offerName: string;
  readonly model: SignedQuote['node']['model'];
  readonly gpus?: number;
  readonly asset: keyof typeof tokens;
  /** Whole tokens. */
  readonly pricePerGpuHour: string;
  readonly maxSeconds?: number;
  /** Base units. Default: as the operator would size it. */
  readonly deposit?: bigint;
  /** Unix seconds. */
  readonly openedAt: number;
  /** From the opening to Ready. */
  readonly readyAfterSeconds?: number;
  readonly servedSeconds: number;
  /** Settlements on the way, by what was signed then. */
  readonly settledAt?: readonly number[];
  readonly referrerBps?: number;
  readonly spot?: boolean;
  /** The provider goes silent after its last settlement, and signs no release. */
  readonly vanishes?: boolean;
}

export interface ExamplePaper {
  readonly receipt: Receipt;
  readonly escrow: Escrow;
  /** What each party may withdraw, by the model of the contract. */
  readonly credits: Readonly<Record<'payee' | 'feeRecipient' | 'referrer' | 'consumer', bigint>>;
}

/** One lease from quote to close, and its receipt. */
export async function exampleReceipt(lease: ExampleLease): Promise<ExamplePaper> {
  const { consumer, session, provider } = exampleKeys;
  const { openedAt, servedSeconds, gpus = 1, maxSeconds = 3600, readyAfterSeconds = 3 } = lease;
  const token = tokens[lease.asset];
  const uid = uuidOf(lease.name);
  const price = parseAmount(lease.pricePerGpuHour, token.decimals);
  const node: SignedQuote['node'] = {
    offerName: lease.offerName,
    model: lease.model,
    gpus,
    resources: { cpu: String(8 * gpus), memory: `${32 * gpus}Gi`, ephemeralStorage: `${100 * gpus}Gi` },
  };
  const leaseRef = leaseRefOf(exampleClusterUid, uid, 1);
  const leaseId = leaseIdOf(consumer.address, leaseRef);
  const quote: Quote = {
    networkId,
    provider: provider.address,
    payee: provider.address,
    consumer: consumer.address,
    leaseRef,
    token: token.address,
    pricePerGpuHour: price,
    gpus,
    minSeconds: 60,
    maxSeconds,
    startTimeoutSeconds: 900,
    graceSeconds: graceSeconds(10n ** BigInt(token.decimals) / 4n, gpus, price),
    capacityType: lease.spot ? 1 : 0,
    specHash: hashJson(node),
    saltCommit: `0x${'0'.repeat(64)}`,
    referrer: lease.referrerBps ? addressOf('referrer') : zeroAddress,
    referrerBps: lease.referrerBps ?? 0,
    expiresAt: openedAt + 118,
    nonce: BigInt(id(lease.name)),
  };
  const { signature } = await signQuote(provider, exampleChain, quote);
  const quoteHash = hashQuote(exampleChain, quote);

  const size = sizeDeposit({ gpus, pricePerGpuHour: price, minSeconds: 60, maxSeconds });
  const deposit = lease.deposit ?? (size.ok ? size.deposit : 0n);
  let state = newEscrowModel({ networkId, owner, feeRecipient, claimWindowSeconds: 30 });
  const play = (call: EscrowCall, now: number) => {
    const result = callEscrow(state, call, now);
    if (!result.ok) throw new Error(`the example's ${call.do} is refused: ${result.refusal}`);
    state = result.state;
  };
  const rule = { allowed: true, feeBps: token.feeBps };
  play({ do: 'setToken', from: owner, token: token.address, rule }, openedAt);
  const opening = { from: consumer.address, quote, leaseId, quoteHash, deposit };
  play({ do: 'open', ...opening, signedBy: provider.address, signer: session.address }, openedAt);
  const readyAt = openedAt + readyAfterSeconds;
  const transactions: Receipt['settlement']['transactions'] = [];
  const trace = (what: string, ...events: string[]) =>
    transactions.push({ hash: id(`${lease.name} ${what}`), blockNumber: 10 + 2 * transactions.length, events });
  trace('open', 'LeaseOpened');
  for (const seconds of lease.settledAt ?? []) {
    const voucher = { leaseId, servedSeconds: seconds, last: false };
    play({ do: 'settle', from: provider.address, voucher, signedBy: session.address }, readyAt + seconds + 1);
    trace(`settle ${seconds}`, 'LeaseSettled');
  }
  const stop = readyAt + servedSeconds + 2;
  if (lease.vanishes) {
    play({ do: 'requestClose', from: consumer.address, leaseId }, stop);
    trace('request', 'LeaseCloseRequested');
    play({ do: 'finalize', from: consumer.address, leaseId }, stop + 30);
    trace('finalize', 'LeaseClosed');
  } else {
    const voucher = { leaseId, servedSeconds, last: true };
    play({ do: 'close', from: provider.address, voucher, signedBy: session.address }, stop);
    trace('close', 'LeaseClosed');
  }
  const escrow = state.leases.get(leaseId)!;

  const at = (unixSeconds: number) => new Date(unixSeconds * 1000).toISOString();
  const quoteRecord: QuoteRecord = {
    signed: { ...exampleChain, quote: quoteToJson(quote), signature, node },
    hash: quoteHash,
    leaseId,
    offerName: `sandbox-${lease.offerName}`,
    providerName: 'sandbox',
    assetSymbol: lease.asset,
    decimals: token.decimals,
    askedAt: at(openedAt - 2),
  };
  const release = (await signRelease(provider, exampleChain, { leaseId, servedSeconds })).signature;
  const record: LeaseRecord = {
    attempt: 1,
    quote: quoteRecord,
    deposit: String(deposit),
    meter: { servedMs: servedSeconds * 1000 },
    signedSeconds: servedSeconds,
    vouchedSeconds: servedSeconds,
    ...(servedSeconds > 0 ? { startedAt: at(readyAt) } : {}),
    end: lease.vanishes
      ? { reason: 'NodeLost', message: 'the node was not Ready for 1800 s.', at: at(stop), retry: false }
      : { reason: 'Released', message: 'the lease was deleted.', at: at(stop - 1), retry: false },
    ...(lease.vanishes ? {} : { release: { servedSeconds, signature: release, at: at(stop) } }),
    avoid: [],
    attempts: [],
  };
  const voucher = await signVoucher(session, exampleChain, { leaseId, servedSeconds, last: true });
  const unsealed = buildReceipt({
    clusterUid: exampleClusterUid,
    lease: { namespace: lease.namespace ?? 'ml', name: lease.name, uid },
    record,
    quote: quoteRecord,
    escrow,
    trail: { feeRecipient, transactions, all: true },
    voucherSignature: voucher.signature,
    place: { region: 'eu-north' },
  });
  const credit = (account: Address) => creditOf(state, token.address, account);
  return {
    receipt: { ...unsealed, seal: await sealReceipt(session, unsealed) },
    escrow,
    credits: {
      payee: credit(quote.payee),
      feeRecipient: credit(feeRecipient),
      referrer: credit(quote.referrer),
      consumer: credit(quote.consumer),
    },
  };
}

/** The leases of `npm run sandbox -- --exit`, with the seconds of one of its runs. */
const began = Date.UTC(2026, 10, 26, 9) / 1000;
export const exampleLeases: readonly ExampleLease[] = [
  {
    name: 'train',
    offerName: 'rtx4090',
    model: 'RTX4090',
    asset: 'USDC',
    pricePerGpuHour: '0.34',
    openedAt: began,
    servedSeconds: 31,
  },
  {
    name: 'native',
    offerName: 'h100-sxm',
    model: 'H100-SXM',
    asset: 'GPU',
    pricePerGpuHour: '2.64',
    openedAt: began + 6,
    servedSeconds: 38,
  },
  {
    name: 'second',
    offerName: 'rtx4090',
    model: 'RTX4090',
    asset: 'USDC',
    pricePerGpuHour: '0.34',
    openedAt: began + 37,
    servedSeconds: 8,
  },
];

const folder = 'operator/reference';

/** Path from the repository's root → content. */
export async function examplePapers(): Promise<Map<string, string>> {
  const receipts = await Promise.all(exampleLeases.map(async (lease) => (await exampleReceipt(lease)).receipt));
  const statement = statementOf(receipts, { clusterUid: exampleClusterUid, namespace: 'ml', month: '2026-11' });
  const rows = focusRows(receipts, {
    currency: 'USD',
    rates: new Map([
      ['USDC', '1'],
      ['GPU', '1.02'],
    ]),
  });
  const json = (value: unknown) => `${JSON.stringify(value, null, 2)}\n`;
  // Of seconds there would be nothing to pay: here they run for most of their hour.
  const longer = exampleLeases.map((lease) => ({ ...lease, servedSeconds: 3500 }));
  const invoice = exampleInvoice(await Promise.all(longer.map(async (lease) => (await exampleReceipt(lease)).receipt)));
  return new Map([
    ...receipts.map((receipt): [string, string] => [`${folder}/receipt-ml-${receipt.lease.name}.json`, json(receipt)]),
    [`${folder}/statement-ml-2026-11.md`, statementMarkdown(statement)],
    [`${folder}/statement-ml-2026-11.csv`, statementCsv(statement)],
    [`${folder}/statement-ml-2026-11.json`, json(statement)],
    [`${folder}/focus-2026-11.csv`, focusCsv(rows)],
    [`${folder}/focus-schema.json`, json(focusSchema())],
    [`${folder}/invoice-ml-2026-11.json`, json(invoice)],
    [`${folder}/invoice-ml-2026-11.html`, invoiceHtml(invoice)],
  ]);
}

/**
 * The same leases as if a sponsor had paid for them: those in USDC. Their month is over, and the card was charged for part of it.
 */
export function exampleInvoice(receipts: readonly Receipt[]): Invoice {
  const token = { symbol: 'USDC', decimals: tokens.USDC.decimals };
  const customer: Customer = {
    name: 'ml',
    consumer: exampleKeys.consumer.address,
    creditLimit: '500',
    currency: 'USD',
    rate: '1',
    marginBps: 300,
    billTo: ['Example Machine Learning GmbH', 'Beispielstraße 1', '10115 Berlin'],
  };
  const charges = receipts
    .filter(({ asset }) => asset.symbol === token.symbol)
    .map(({ leaseId, quote, settlement }): Charge => {
      const { gpus, pricePerGpuHour, provider } = quote.quote;
      const units = BigInt(settlement.claimed);
      return {
        leaseId: leaseId as Hex32,
        provider: provider as Address,
        gpus,
        servedSeconds: settlement.servedSeconds,
        openedAt: settlement.openedAt,
        closedAt: settlement.closingAt,
        pricePerGpuHour,
        units: String(units),
        micros: String(microsOf(units, customer, token.decimals)),
      };
    });
  const paid = applyEvent({ ...emptyAccount, charges }, customer, {
    kind: 'paid',
    eventId: 'evt_1QhZexample',
    paymentId: 'pi_3QhZexample',
    invoice: invoiceNumber('ml', '2026-11'),
    currency: 'USD',
    cents: 30n,
    at: began + 6 * 86_400,
  });
  const issuer = {
    lines: ['Example GPU Sponsor Ltd', '1 Sample Street', 'London'],
    notes: ['Paid by card or by transfer; tax is added by whoever has to.'],
    dueDays: 14,
  };
  return invoiceOf(paid!.account, customer, token, issuer, '2026-11', new Date(Date.UTC(2026, 11, 3)));
}

/** A UUID that is the name's. */
function uuidOf(name: string): string {
  const hex = id(`gpulease example: lease ${name}`).slice(2);
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}
