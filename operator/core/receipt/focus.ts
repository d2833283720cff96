/**
 * Charges in the columns of FOCUS, the FinOps Open Cost and Usage Specification, version 1.2 (June 2025):
 * https://github.com/FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec, tag v1.2, folder specification/columns.
 *
 * FOCUS wants BillingCurrency to be a national one (ISO 4217), and knows tokens as a virtual currency that is priced in. So a
 * token is the PricingCurrency, whose columns are exact, and whoever exports says what a token is worth in money: nothing is
 * assumed, not even that a stablecoin is worth a dollar.
 *
 * One row is one settled escrow for which something was billed. What FOCUS asks to multiply exactly, quantity × unit price =
 * cost, holds to the 18 places that are written: hours are thirds of seconds, which no decimal number is.
 */
import type { Receipt } from '../../api/receipt.ts';
import { formatAmount, parseAmount } from '../money/amount.ts';
import { type Cell, csvOf } from './csv.ts';
import { instantOf, monthOf, periodOf } from './period.ts';
import { inOrder, statementId } from './statement.ts';

export const focusVersion = '1.2';

type DataType = 'STRING' | 'DECIMAL' | 'DATETIME' | 'JSON';
interface Column {
  readonly type: DataType;
  /** What stands there. */
  readonly holds: string;
}

/** FOCUS' own in alphabetical order, then ours, which begin with x_. */
export const focusColumns = {
  AvailabilityZone: { type: 'STRING', holds: 'zone of the offer, where it names one' },
  BilledCost: { type: 'DECIMAL', holds: 'what the escrow paid out, fee included, at the rate given' },
  BillingAccountId: { type: 'STRING', holds: "the consumer's wallet, as CAIP-10 writes accounts" },
  BillingAccountName: { type: 'STRING', holds: 'null: a wallet has no name' },
  BillingCurrency: { type: 'STRING', holds: 'national currency, as given' },
  BillingPeriodEnd: { type: 'DATETIME', holds: 'first moment of the next month' },
  BillingPeriodStart: { type: 'DATETIME', holds: 'first moment of the month in which billing of the lease stopped' },
  ChargeCategory: { type: 'STRING', holds: 'Usage' },
  ChargeClass: { type: 'STRING', holds: 'null: an escrow is settled once' },
  ChargeDescription: { type: 'STRING', holds: 'GPUs, seconds and price in words' },
  ChargeFrequency: { type: 'STRING', holds: 'Usage-Based' },
  ChargePeriodEnd: { type: 'DATETIME', holds: "when billing stopped, by the chain's clock" },
  ChargePeriodStart: {
    type: 'DATETIME',
    holds: 'when the node was first Ready; when the escrow was opened if it never was',
  },
  ConsumedQuantity: { type: 'DECIMAL', holds: 'GPU hours served' },
  ConsumedUnit: { type: 'STRING', holds: 'GPU-Hours' },
  ContractedCost: { type: 'DECIMAL', holds: 'as BilledCost' },
  ContractedUnitPrice: { type: 'DECIMAL', holds: 'quoted price of a GPU hour, at the rate given' },
  EffectiveCost: { type: 'DECIMAL', holds: 'as BilledCost: nothing is amortized' },
  InvoiceId: { type: 'STRING', holds: 'null: the chain settles, nobody invoices. See x_StatementId' },
  InvoiceIssuerName: { type: 'STRING', holds: 'the provider, who is paid' },
  ListCost: { type: 'DECIMAL', holds: 'as ContractedCost: the price quoted is the price listed' },
  ListUnitPrice: { type: 'DECIMAL', holds: 'as ContractedUnitPrice' },
  PricingCategory: { type: 'STRING', holds: 'Standard, or Dynamic for spot capacity' },
  PricingCurrency: { type: 'STRING', holds: 'symbol of the token, a virtual currency' },
  PricingCurrencyContractedUnitPrice: { type: 'DECIMAL', holds: 'quoted price of a GPU hour in tokens, exact' },
  PricingCurrencyEffectiveCost: { type: 'DECIMAL', holds: 'what the escrow paid out in tokens, exact' },
  PricingCurrencyListUnitPrice: { type: 'DECIMAL', holds: 'as PricingCurrencyContractedUnitPrice' },
  PricingQuantity: {
    type: 'DECIMAL',
    holds: 'GPU hours paid for: less than ConsumedQuantity where the deposit did not reach',
  },
  PricingUnit: { type: 'STRING', holds: 'GPU-Hours' },
  ProviderName: { type: 'STRING', holds: 'name of the GpuProvider' },
  PublisherName: { type: 'STRING', holds: 'as ProviderName' },
  RegionId: { type: 'STRING', holds: 'region of the offer, where it names one' },
  RegionName: { type: 'STRING', holds: 'as RegionId' },
  ResourceId: { type: 'STRING', holds: "providerID of the leased node: provider and the escrow's id" },
  ResourceName: { type: 'STRING', holds: 'name of the GpuLease' },
  ResourceType: { type: 'STRING', holds: 'GPU Lease' },
  ServiceCategory: { type: 'STRING', holds: 'Compute' },
  ServiceName: { type: 'STRING', holds: 'gpulease' },
  ServiceSubcategory: { type: 'STRING', holds: 'Virtual Machines: computing environments from hosts to bare metal' },
  SkuId: { type: 'STRING', holds: 'name of the GpuOffer' },
  SkuMeter: { type: 'STRING', holds: 'GPU time' },
  SkuPriceDetails: { type: 'JSON', holds: 'model and number of GPUs' },
  SkuPriceId: { type: 'STRING', holds: 'offer, token and price together' },
  SubAccountId: { type: 'STRING', holds: "the consumer cluster's UID and the namespace" },
  SubAccountName: { type: 'STRING', holds: 'namespace of the GpuLease' },
  SubAccountType: { type: 'STRING', holds: 'Kubernetes namespace' },
  Tags: { type: 'JSON', holds: 'lease, its UID, attempt and end, with the prefix gpulease.dev/' },
  x_ExchangeRate: { type: 'DECIMAL', holds: 'what one token was taken to be worth in BillingCurrency' },
  x_PlatformFee: { type: 'DECIMAL', holds: 'part of PricingCurrencyEffectiveCost that is platform fee, in tokens' },
  x_ServedSeconds: { type: 'DECIMAL', holds: 'seconds billed, of the whole node' },
  x_StatementId: { type: 'STRING', holds: 'number of the statement that has this row as a line' },
} as const satisfies Record<string, Column>;
export type FocusColumn = keyof typeof focusColumns;
export type FocusRow = Readonly<Record<FocusColumn, string | null>>;

export interface FocusOptions {
  /** ISO 4217. */
  readonly currency: string;
  /** What one whole token is worth, by symbol, as a decimal string. */
  readonly rates: ReadonlyMap<string, string>;
}

/** Tokens that are billed in and that no rate is given for. Ask before `focusRows`, which needs them all. */
export function ratesMissing(receipts: readonly Receipt[], { rates }: FocusOptions): string[] {
  return [...new Set(receipts.filter(isCharge).map(({ asset }) => asset.symbol))].filter((one) => !rates.has(one));
}

/** Of a rate. Throws AmountError when the text is none. */
const ratePlaces = 12;
export const checkRate = (text: string): bigint => parseAmount(text, ratePlaces);

const isCharge = ({ settlement }: Receipt) => BigInt(settlement.claimed) > 0n;

/** Oldest first. Receipts for which nothing was billed are no charges. */
export function focusRows(receipts: readonly Receipt[], options: FocusOptions): FocusRow[] {
  return receipts
    .filter(isCharge)
    .toSorted(inOrder)
    .map((receipt) => rowOf(receipt, options));
}

function rowOf(receipt: Receipt, { currency, rates }: FocusOptions): FocusRow {
  const { lease, quote, settlement, asset, providerName } = receipt;
  const terms = quote.quote;
  const rateText = rates.get(asset.symbol);
  if (rateText === undefined) throw new RangeError(`no rate is given for ${asset.symbol}`);
  const rate = checkRate(rateText);
  const tokens = (units: bigint) => formatAmount(units, asset.decimals);
  // Exact: the places of both are kept.
  const worth = (units: bigint) => formatAmount(units * rate, asset.decimals + ratePlaces);

  const price = BigInt(terms.pricePerGpuHour);
  const claimed = BigInt(settlement.claimed);
  const served = BigInt(settlement.servedSeconds) * BigInt(terms.gpus);
  const month = monthOf(settlement.closingAt);
  const period = periodOf(month)!;
  const started = receipt.startedAt === undefined ? undefined : Math.floor(Date.parse(receipt.startedAt) / 1000);
  // Two clocks, that of the node and that of the chain: the beginning is never after the end.
  const from = Math.min(started ?? settlement.openedAt, settlement.closingAt);
  const at = (unixSeconds: number) => instantOf(new Date(unixSeconds * 1000));
  const hours = quotient(served, 3600n);

  return {
    AvailabilityZone: receipt.zone ?? null,
    BilledCost: worth(claimed),
    BillingAccountId: `eip155:${quote.chainId}:${terms.consumer}`,
    BillingAccountName: null,
    BillingCurrency: currency,
    BillingPeriodEnd: instantOf(period.end),
    BillingPeriodStart: instantOf(period.start),
    ChargeCategory: 'Usage',
    ChargeClass: null,
    ChargeDescription: `${terms.gpus} × ${quote.node.model} for ${settlement.servedSeconds} s at ${tokens(price)} ${asset.symbol} per GPU hour`,
    ChargeFrequency: 'Usage-Based',
    ChargePeriodEnd: at(settlement.closingAt),
    ChargePeriodStart: at(from),
    ConsumedQuantity: hours,
    ConsumedUnit: 'GPU-Hours',
    ContractedCost: worth(claimed),
    ContractedUnitPrice: worth(price),
    EffectiveCost: worth(claimed),
    InvoiceId: null,
    InvoiceIssuerName: providerName,
    ListCost: worth(claimed),
    ListUnitPrice: worth(price),
    PricingCategory: terms.capacityType === 1 ? 'Dynamic' : 'Standard',
    PricingCurrency: asset.symbol,
    PricingCurrencyContractedUnitPrice: tokens(price),
    PricingCurrencyEffectiveCost: tokens(claimed),
    PricingCurrencyListUnitPrice: tokens(price),
    PricingQuantity: price === 0n ? hours : quotient(claimed, price),
    PricingUnit: 'GPU-Hours',
    ProviderName: providerName,
    PublisherName: providerName,
    RegionId: receipt.region ?? null,
    RegionName: receipt.region ?? null,
    ResourceId: `gpulease://${providerName}/${receipt.leaseId}`,
    ResourceName: lease.name,
    ResourceType: 'GPU Lease',
    ServiceCategory: 'Compute',
    ServiceName: 'gpulease',
    ServiceSubcategory: 'Virtual Machines',
    SkuId: receipt.offerName,
    SkuMeter: 'GPU time',
    SkuPriceDetails: JSON.stringify({ GpuCount: 1, x_GpuModel: quote.node.model }),
    SkuPriceId: `${receipt.offerName}/${quote.chainId}/${terms.token.toLowerCase()}/${price}`,
    SubAccountId: `${lease.clusterUid}/${lease.namespace}`,
    SubAccountName: lease.namespace,
    SubAccountType: 'Kubernetes namespace',
    Tags: JSON.stringify({
      'gpulease.dev/lease': lease.name,
      'gpulease.dev/lease-uid': lease.uid,
      'gpulease.dev/attempt': lease.attempt,
      'gpulease.dev/end': receipt.end.reason,
    }),
    x_ExchangeRate: formatAmount(rate, ratePlaces),
    x_PlatformFee: tokens(BigInt(settlement.fee)),
    x_ServedSeconds: String(settlement.servedSeconds),
    x_StatementId: statementId({ clusterUid: lease.clusterUid, namespace: lease.namespace, month }),
  };
}

const places = 18;

/** To 18 places, the last one rounded. */
function quotient(a: bigint, b: bigint): string {
  return formatAmount((2n * a * 10n ** BigInt(places) + b) / (2n * b), places);
}

const names = Object.keys(focusColumns) as FocusColumn[];

export const focusCsv = (rows: readonly FocusRow[]): string =>
  csvOf(
    names,
    rows.map((row): Record<string, Cell> => ({ ...row })),
  );

/** FOCUS' schema metadata, which goes with the rows. Id and date change when the columns do. */
export function focusSchema(): object {
  return {
    SchemaId: 'gpulease.dev/focus/v1',
    FocusVersion: focusVersion,
    CreationDate: '2026-11-26T00:00:00Z',
    DataGenerator: { DataGenerator: 'gpulease' },
    ColumnDefinition: names.map((name) => ({
      ColumnName: name,
      DataType: focusColumns[name].type,
      ...(focusColumns[name].type === 'DECIMAL'
        ? { NumericPrecision: 60, NumberScale: 30 }
        : { StringEncoding: 'UTF-8' }),
      ...(name === 'Tags' ? { ProviderTagPrefixes: ['gpulease.dev/'] } : {}),
    })),
  };
}
