/**
 * One invoice a customer and month, made of the account's charges and payments and of nothing else: JSON for programs, and a
 * page for people that a browser prints (or saves as PDF) on A4 or Letter. A lease is on the invoice of the month in which its
 * billing stopped.
 */
import type { Address } from '../../api/messages.ts';
import { formatAmount } from '../money/amount.ts';
import { instantOf, periodOf } from '../receipt/period.ts';
import {
  type Account,
  type Charge,
  type Customer,
  invoiceNumber,
  microsOf,
  money,
  monthOfCharge,
  paidBy,
  type Token,
  wholeCents,
} from './account.ts';

export const invoiceVersion = 'gpulease.dev/invoice/v1';

/** Who sends it, and what is to be known for paying it. */
export interface Issuer {
  readonly lines: readonly string[];
  /** Under the sum: how to pay, tax, terms. */
  readonly notes?: readonly string[];
  /** Days from the end of the month. */
  readonly dueDays: number;
}

export interface InvoiceLine {
  readonly leaseId: string;
  readonly provider: Address;
  readonly gpus: number;
  readonly from: string;
  readonly until: string;
  readonly servedSeconds: number;
  /** Whole tokens, exact: the price of a GPU hour, and what the sponsor paid of the lease's price. */
  readonly pricePerGpuHour: string;
  readonly tokens: string;
  /** In the currency, to a millionth. */
  readonly amount: string;
}

export interface Invoice {
  readonly version: typeof invoiceVersion;
  readonly number: string;
  readonly customer: string;
  readonly consumer: Address;
  readonly month: string;
  readonly from: string;
  readonly until: string;
  /** The month is not over: lines may be added. */
  readonly preliminary: boolean;
  readonly dueAt: string;
  readonly issuer: readonly string[];
  readonly billTo: readonly string[];
  readonly notes: readonly string[];
  readonly currency: string;
  readonly token: string;
  readonly rate: string;
  readonly marginBps: number;
  readonly lines: readonly InvoiceLine[];
  readonly total: string;
  readonly paid: string;
  readonly due: string;
  readonly payments: readonly { readonly id: string; readonly at: string; readonly amount: string }[];
}

export function invoiceOf(
  account: Account,
  customer: Customer,
  token: Token,
  issuer: Issuer,
  month: string,
  now: Date,
): Invoice {
  const period = periodOf(month);
  if (!period) throw new RangeError(`${month} is no month`);
  const number = invoiceNumber(customer.name, month);
  const charges = account.charges
    .filter((one) => monthOfCharge(one) === month)
    .toSorted((a, b) => a.closedAt - b.closedAt || (a.leaseId < b.leaseId ? -1 : 1));
  const payments = account.payments.filter((one) => one.invoice === number);
  const total = wholeCents(charges.reduce((sum, one) => sum + BigInt(one.micros), 0n));
  const paid = payments.reduce((sum, one) => sum + paidBy(one), 0n);
  return {
    version: invoiceVersion,
    number,
    customer: customer.name,
    consumer: customer.consumer,
    month,
    from: instantOf(period.start),
    until: instantOf(period.end),
    preliminary: now < period.end,
    dueAt: instantOf(new Date(period.end.getTime() + issuer.dueDays * 86_400_000)),
    issuer: issuer.lines,
    billTo: customer.billTo,
    notes: issuer.notes ?? [],
    currency: customer.currency,
    token: token.symbol,
    rate: customer.rate,
    marginBps: customer.marginBps,
    lines: charges.map((charge) => lineOf(charge, token)),
    total: money(total),
    paid: money(paid),
    due: money(total - paid),
    payments: payments.map((one) => ({
      id: one.id,
      at: instantOf(new Date(one.at * 1000)),
      amount: money(paidBy(one)),
    })),
  };
}

const lineOf = (charge: Charge, { decimals }: Token): InvoiceLine => ({
  leaseId: charge.leaseId,
  provider: charge.provider,
  gpus: charge.gpus,
  from: instantOf(new Date(charge.openedAt * 1000)),
  until: instantOf(new Date(charge.closedAt * 1000)),
  servedSeconds: charge.servedSeconds,
  pricePerGpuHour: formatAmount(BigInt(charge.pricePerGpuHour), decimals),
  tokens: formatAmount(BigInt(charge.units), decimals),
  amount: money(BigInt(charge.micros)),
});

/** Many charges are never above what all their tokens together cost. */
export const isFair = (charges: readonly Charge[], customer: Customer, token: Token): boolean =>
  charges.reduce((sum, one) => sum + BigInt(one.micros), 0n) <=
  microsOf(
    charges.reduce((sum, one) => sum + BigInt(one.units), 0n),
    customer,
    token.decimals,
  );

/** A whole page, without scripts, fonts or pictures of others: it says the same wherever it is opened. */
export function invoiceHtml(invoice: Invoice): string {
  const { currency, lines } = invoice;
  const cells = (tag: 'td' | 'th', values: readonly (readonly [string | number, 'n' | ''])[]) =>
    `<tr>${values.map(([value, align]) => `<${tag}${align ? ' class="n"' : ''}>${escaped(value)}</${tag}>`).join('')}</tr>`;
  const head = cells('th', [
    ['Lease', ''],
    ['GPUs', 'n'],
    ['From', ''],
    ['Until', ''],
    ['Seconds', 'n'],
    [`${invoice.token} a GPU hour`, 'n'],
    [invoice.token, 'n'],
    [currency, 'n'],
  ]);
  const rows = lines.map((line) =>
    cells('td', [
      [`${line.leaseId.slice(0, 14)}…`, ''],
      [line.gpus, 'n'],
      [dayAndTime(line.from), ''],
      [dayAndTime(line.until), ''],
      [line.servedSeconds, 'n'],
      [line.pricePerGpuHour, 'n'],
      [line.tokens, 'n'],
      [line.amount, 'n'],
    ]),
  );
  const block = (some: readonly string[]) => some.map((one) => escaped(one)).join('<br>');
  const margin = invoice.marginBps === 0 ? '' : ` and a margin of ${formatAmount(BigInt(invoice.marginBps), 2)} %`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Invoice ${escaped(invoice.number)}</title>
<style>
  @page { margin: 18mm }
  body { font: 10pt/1.4 system-ui, sans-serif; color: #111; max-width: 180mm; margin: 2rem auto; padding: 0 1rem }
  h1 { font-size: 16pt; margin: 0 0 1rem }
  .parties { display: flex; justify-content: space-between; margin-bottom: 1.5rem }
  table { border-collapse: collapse; width: 100%; font-size: 9pt }
  th, td { text-align: left; padding: .25rem .4rem; border-bottom: 1px solid #ccc; white-space: nowrap }
  .n { text-align: right; font-variant-numeric: tabular-nums }
  thead { display: table-header-group }
  tr { break-inside: avoid }
  .sums { margin: 1rem 0 0 auto; width: auto }
  .sums th { border: 0 } .sums td { border: 0 } .sums tr:last-child * { font-weight: 700; border-top: 2px solid #111 }
  footer { margin-top: 1.5rem; font-size: 8.5pt; color: #444 }
  @media print { body { margin: 0; max-width: none; padding: 0 } }
</style>
</head>
<body>
<h1>Invoice ${escaped(invoice.number)}${invoice.preliminary ? ', preliminary' : ''}</h1>
<div class="parties"><address>${block(invoice.issuer)}</address><address>${block(invoice.billTo)}</address></div>
<p>GPUs leased, for which billing stopped from ${dayAndTime(invoice.from)} until before ${dayAndTime(invoice.until)} UTC. Due by ${invoice.dueAt.slice(0, 10)}.</p>
<table>
<thead>${head}</thead>
<tbody>
${rows.length > 0 ? rows.join('\n') : '<tr><td colspan="8">Nothing was leased.</td></tr>'}
</tbody>
</table>
<table class="sums">
<tr><th>Total</th><td class="n">${escaped(`${invoice.total} ${currency}`)}</td></tr>
<tr><th>Paid</th><td class="n">${escaped(`${invoice.paid} ${currency}`)}</td></tr>
<tr><th>Due</th><td class="n">${escaped(`${invoice.due} ${currency}`)}</td></tr>
</table>
<footer>
<p>${escaped(`Tokens are what was paid on your behalf out of escrows of ${invoice.consumer}, platform fee included; one ${invoice.token} at ${invoice.rate} ${currency}${margin}. The sum is rounded down to the cent.`)}</p>
${invoice.notes.length > 0 ? `<p>${block(invoice.notes)}</p>` : ''}
</footer>
</body>
</html>
`;
}

const dayAndTime = (instant: string): string => instant.slice(0, 16).replace('T', ' ');

const escaped = (value: string | number): string =>
  String(value)
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll("'", '&#39;');
