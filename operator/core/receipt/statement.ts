/** What one namespace leased in one month: a line an escrow, a sum a token. Made of receipts and of nothing else. */
import type { Receipt } from '../../api/receipt.ts';
import { formatAmount } from '../money/amount.ts';
import { type Cell, csvOf } from './csv.ts';
import { instantOf, monthOf, periodOf } from './period.ts';

export const statementVersion = 'gpulease.dev/statement/v1';

/** Amounts are whole tokens as exact decimal strings: no digit is rounded away. */
export interface StatementLine {
  readonly lease: string;
  readonly attempt: number;
  readonly leaseId: string;
  readonly provider: string;
  readonly offer: string;
  readonly model: string;
  readonly gpus: number;
  /** When the node was first Ready; absent when it never was. */
  readonly startedAt?: string;
  /** When billing stopped, by the chain's clock. */
  readonly endedAt: string;
  readonly endReason: string;
  readonly servedSeconds: number;
  readonly asset: string;
  readonly chainId: number;
  readonly token: string;
  readonly pricePerGpuHour: string;
  readonly billed: string;
  readonly paid: string;
  readonly fee: string;
  readonly deposited: string;
  readonly refunded: string;
  /** Signed by the provider, too; otherwise by the consumer and the chain alone. */
  readonly released: boolean;
}

export interface StatementTotal {
  readonly asset: string;
  readonly chainId: number;
  readonly token: string;
  readonly leases: number;
  readonly gpuSeconds: number;
  readonly billed: string;
  readonly paid: string;
  readonly fee: string;
  readonly deposited: string;
  readonly refunded: string;
}

export interface Statement {
  readonly version: typeof statementVersion;
  readonly id: string;
  readonly clusterUid: string;
  readonly namespace: string;
  readonly month: string;
  /** Inclusive, exclusive. */
  readonly from: string;
  readonly until: string;
  readonly lines: readonly StatementLine[];
  readonly totals: readonly StatementTotal[];
}

export const statementId = (of: { clusterUid: string; namespace: string; month: string }): string =>
  `${of.clusterUid}/${of.namespace}/${of.month}`;

/** Of receipts of one cluster; those of other namespaces and months are left out. `month` is one that `periodOf` knows. */
export function statementOf(
  receipts: readonly Receipt[],
  of: { readonly clusterUid: string; readonly namespace: string; readonly month: string },
): Statement {
  const period = periodOf(of.month);
  if (!period) throw new RangeError(`${of.month} is no month`);
  const own = receipts
    .filter(
      ({ lease, settlement }) =>
        lease.clusterUid === of.clusterUid &&
        lease.namespace === of.namespace &&
        monthOf(settlement.closingAt) === of.month,
    )
    .toSorted(inOrder);
  return {
    version: statementVersion,
    id: statementId(of),
    ...of,
    from: instantOf(period.start),
    until: instantOf(period.end),
    lines: own.map(lineOf),
    totals: totalsOf(own),
  };
}

/** By time, then by id: the same receipts make the same statement, in whatever order they came. */
export const inOrder = (a: Receipt, b: Receipt): number =>
  a.settlement.closingAt - b.settlement.closingAt || (a.leaseId < b.leaseId ? -1 : a.leaseId > b.leaseId ? 1 : 0);

function lineOf(receipt: Receipt): StatementLine {
  const { lease, quote, settlement, asset } = receipt;
  const amount = (units: string) => formatAmount(BigInt(units), asset.decimals);
  return {
    lease: lease.name,
    attempt: lease.attempt,
    leaseId: receipt.leaseId,
    provider: receipt.providerName,
    offer: receipt.offerName,
    model: quote.node.model,
    gpus: quote.quote.gpus,
    ...(receipt.startedAt === undefined ? {} : { startedAt: instantOf(new Date(receipt.startedAt)) }),
    endedAt: instantOf(new Date(settlement.closingAt * 1000)),
    endReason: receipt.end.reason,
    servedSeconds: settlement.servedSeconds,
    asset: asset.symbol,
    chainId: quote.chainId,
    token: quote.quote.token,
    pricePerGpuHour: amount(quote.quote.pricePerGpuHour),
    billed: amount(settlement.claimed),
    paid: amount(settlement.paid),
    fee: amount(settlement.fee),
    deposited: amount(settlement.deposit),
    refunded: amount(settlement.refunded),
    released: receipt.release !== undefined,
  };
}

/** Added up in base units, per token: two tokens of one symbol are two. */
function totalsOf(receipts: readonly Receipt[]): StatementTotal[] {
  const byToken = Map.groupBy(receipts, ({ quote }) => `${quote.chainId}/${quote.quote.token.toLowerCase()}`);
  return [...byToken.entries()]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([, own]) => {
      const { asset, quote } = own[0]!;
      const sum = (field: 'claimed' | 'paid' | 'fee' | 'deposit' | 'refunded') =>
        formatAmount(
          own.reduce((total, { settlement }) => total + BigInt(settlement[field]), 0n),
          asset.decimals,
        );
      return {
        asset: asset.symbol,
        chainId: quote.chainId,
        token: quote.quote.token,
        leases: own.length,
        gpuSeconds: own.reduce((total, one) => total + one.settlement.servedSeconds * one.quote.quote.gpus, 0),
        billed: sum('claimed'),
        paid: sum('paid'),
        fee: sum('fee'),
        deposited: sum('deposit'),
        refunded: sum('refunded'),
      };
    });
}

const columns = [
  'lease',
  'attempt',
  'provider',
  'offer',
  'model',
  'gpus',
  'startedAt',
  'endedAt',
  'endReason',
  'servedSeconds',
  'asset',
  'chainId',
  'token',
  'pricePerGpuHour',
  'billed',
  'paid',
  'fee',
  'deposited',
  'refunded',
  'released',
  'leaseId',
] as const satisfies readonly (keyof StatementLine)[];

/** The lines alone: whoever wants a table adds up itself. */
export function statementCsv({ lines }: Statement): string {
  return csvOf(
    columns,
    lines.map(
      (line): Record<string, Cell> => ({ ...line, startedAt: line.startedAt ?? null, released: String(line.released) }),
    ),
  );
}

/** For people, on a page or in a terminal. */
export function statementMarkdown({ id, namespace, month, from, until, lines, totals }: Statement): string {
  const text = (cell: Cell) => String(cell).replaceAll('|', '\\|');
  const table = (head: readonly string[], rows: readonly (readonly Cell[])[]) => [
    `| ${head.join(' | ')} |`,
    `|${head.map(() => '---').join('|')}|`,
    ...rows.map((row) => `| ${row.map(text).join(' | ')} |`),
  ];
  const out = [
    `# Statement of namespace ${namespace}, ${month}`,
    '',
    `Number ${id}. Leases whose billing stopped from ${from} until before ${until}, by the chain's clock. Amounts are whole tokens; the price includes the platform fee.`,
    '',
  ];
  if (lines.length === 0) return `${[...out, 'Nothing was leased.'].join('\n')}\n`;
  out.push(
    ...table(
      [
        'lease',
        'GPUs',
        'provider',
        'until',
        'seconds',
        'price per GPU hour',
        'billed',
        'of it fee',
        'deposited',
        'refunded',
        'ended',
        'escrow',
      ],
      lines.map((l) => [
        l.attempt === 1 ? l.lease : `${l.lease}, attempt ${l.attempt}`,
        `${l.gpus} × ${l.model}`,
        l.provider,
        l.endedAt,
        l.servedSeconds,
        `${l.pricePerGpuHour} ${l.asset}`,
        `${l.billed} ${l.asset}`,
        l.fee,
        l.deposited,
        l.refunded,
        l.released ? l.endReason : `${l.endReason}, without the provider's release`,
        `\`${l.leaseId.slice(0, 18)}…\``,
      ]),
    ),
    '',
    ...table(
      ['total', 'chain', 'leases', 'GPU seconds', 'billed', 'paid to providers', 'fee', 'deposited', 'refunded'],
      totals.map((t) => [t.asset, t.chainId, t.leases, t.gpuSeconds, t.billed, t.paid, t.fee, t.deposited, t.refunded]),
    ),
  );
  return `${out.join('\n')}\n`;
}
