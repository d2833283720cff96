/**
 * A quote, decided: which terms the provider signs for a request. Nothing is reserved and nothing is stored; the quote
 * carries all that is needed to honour it, and capacity is taken when its escrow is on chain.
 */
import type { PromisedNode, QuoteJson, QuoteRequest, Resources, SignedQuote } from '../../api/gateway.ts';
import type { Address, Hex32, Quote } from '../../api/messages.ts';
import { AmountError, parseAmount } from '../money/amount.ts';
import { graceSeconds } from '../money/price.ts';
import { QuantityError } from '../quantity.ts';
import { candidates, type OfferStock, partitionOf } from './inventory.ts';
import { Refusal } from './refusal.ts';
import { type Room, resourcesOf, roomOfResources, times } from './room.ts';

/** How a provider is paid on one chain in one token. */
export interface ProviderRail {
  readonly chainId: number;
  readonly escrow: Address;
  readonly token: Address;
  readonly assetSymbol: string;
  readonly decimals: number;
  readonly networkId: Hex32;
  readonly payee: Address;
}

export interface QuoteTerms {
  readonly provider: Address;
  /** Most that a consumer may owe before service stops, in whole tokens, e.g. "0.25". */
  readonly maxUnpaid: string;
  readonly quoteSeconds: number;
}

export const zeroHash: Hex32 = `0x${'0'.repeat(64)}`;
export const zeroAddress: Address = `0x${'0'.repeat(40)}`;

export const sameHex = (one: string, other: string): boolean => one.toLowerCase() === other.toLowerCase();

export function railFor(
  rails: readonly ProviderRail[],
  wanted: { readonly chainId: number; readonly escrow: string; readonly token: string },
): ProviderRail | undefined {
  return rails.find(
    (rail) =>
      rail.chainId === wanted.chainId && sameHex(rail.escrow, wanted.escrow) && sameHex(rail.token, wanted.token),
  );
}

/** The room that a promised node takes, with the pods that the offer gives to so many GPUs. */
export function roomOfPromise(node: PromisedNode, podsPerGpu: number): Room {
  return roomOfResources(node.resources, node.gpus, Math.max(1, podsPerGpu) * node.gpus);
}

function promisedResources(request: QuoteRequest, stock: OfferStock): Resources {
  const share = resourcesOf(times(stock.perGpu, request.gpus));
  const asked: Resources = { ...share, ...request.requests };
  try {
    // Read and written again, so that equal promises have equal text and hash.
    return resourcesOf(roomOfResources(asked, request.gpus, 0));
  } catch (error) {
    if (!(error instanceof QuantityError)) throw error;
    throw new Refusal(400, 'requests are not Kubernetes quantities', {
      errors: [{ field: 'requests', message: error.message }],
    });
  }
}

/** What is promised, and the price: refuses with the reason that the consumer acts on. */
export function decideQuote(
  request: QuoteRequest,
  stock: OfferStock,
  rail: ProviderRail,
  terms: QuoteTerms,
  nowSeconds: number,
  nonce: bigint,
  hashOf: (node: PromisedNode) => Hex32,
): { readonly quote: Quote; readonly node: PromisedNode } {
  const { spec } = stock;
  const price = spec.prices.find((one) => one.assetSymbol === rail.assetSymbol);
  if (price === undefined) {
    throw new Refusal('RailNotAccepted', `offer ${stock.name} has no price in ${rail.assetSymbol}`);
  }
  if (request.maxSeconds < spec.minDurationSeconds || request.maxSeconds > spec.maxDurationSeconds) {
    throw new Refusal(
      'TermNotAccepted',
      `offer ${stock.name} is let for ${spec.minDurationSeconds} to ${spec.maxDurationSeconds} seconds, not ${request.maxSeconds}`,
    );
  }
  const node: PromisedNode = {
    offerName: stock.name,
    model: spec.model,
    ...partitionOf(spec),
    gpus: request.gpus,
    resources: promisedResources(request, stock),
  };
  if (candidates(stock, roomOfPromise(node, stock.perGpu.pods)).length === 0) {
    throw new Refusal(
      'CapacityExhausted',
      `no node of offer ${stock.name} has ${request.gpus} GPUs with ${node.resources.cpu} CPU and ${node.resources.memory} memory free; the largest lease that fits now has ${stock.largestAvailable}`,
    );
  }
  const pricePerGpuHour = amount(price.perGpuHour, rail, `price of offer ${stock.name}`);
  const maxUnpaid = amount(terms.maxUnpaid, rail, 'maxUnpaid');
  return {
    node,
    quote: {
      networkId: rail.networkId,
      provider: terms.provider,
      payee: rail.payee,
      consumer: request.consumer as Address,
      leaseRef: request.leaseRef as Hex32,
      token: rail.token,
      pricePerGpuHour,
      gpus: request.gpus,
      minSeconds: spec.minDurationSeconds,
      maxSeconds: request.maxSeconds,
      startTimeoutSeconds: request.startTimeoutSeconds,
      graceSeconds: graceSeconds(maxUnpaid, request.gpus, pricePerGpuHour),
      capacityType: spec.capacityType === 'Spot' ? 1 : 0,
      specHash: hashOf(node),
      saltCommit: zeroHash,
      referrer: zeroAddress,
      referrerBps: 0,
      expiresAt: nowSeconds + terms.quoteSeconds,
      nonce,
    },
  };
}

function amount(text: string, rail: ProviderRail, what: string): bigint {
  try {
    return parseAmount(text, rail.decimals);
  } catch (error) {
    // The provider's own figure: a token with fewer places than the price has.
    if (error instanceof AmountError)
      throw new Refusal('RailNotAccepted', `${what} in ${rail.assetSymbol}: ${error.message}`);
    throw error;
  }
}

export const quoteToJson = (quote: Quote): QuoteJson => ({
  ...quote,
  pricePerGpuHour: String(quote.pricePerGpuHour),
  nonce: String(quote.nonce),
});

/** Of JSON that has passed its schema. */
export const quoteOfJson = (json: QuoteJson): Quote => ({
  ...json,
  networkId: json.networkId as Hex32,
  provider: json.provider as Address,
  payee: json.payee as Address,
  consumer: json.consumer as Address,
  leaseRef: json.leaseRef as Hex32,
  token: json.token as Address,
  specHash: json.specHash as Hex32,
  saltCommit: json.saltCommit as Hex32,
  referrer: json.referrer as Address,
  pricePerGpuHour: BigInt(json.pricePerGpuHour),
  nonce: BigInt(json.nonce),
});

export type { SignedQuote };
