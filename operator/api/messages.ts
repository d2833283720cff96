/**
 * The messages that people sign, as EIP-712 typed data. They are the contract between consumer, provider and chain: the
 * same bytes are hashed here, in the gateway and in LeaseEscrow.sol.
 *
 *   Quote    by the provider: an offer, bound to one consumer and one lease. Opens the escrow.
 *   Voucher  by the consumer's session key: "lease L was served N seconds in all". Cumulative, so only the last one counts.
 *   Release  by the provider: "I ask for no more than N seconds". Lets the consumer close at once.
 *   Access   by the consumer's session key: opens one gateway for one lease, for minutes.
 *   Receipt  by the consumer's session key: "this is what came of lease L". No contract reads it, so it moves nothing.
 *
 * Source: EIP-712, https://eips.ethereum.org/EIPS/eip-712. Amounts are base units of the token; times are Unix seconds.
 */

/** `0x` and 64 hexadecimal digits. */
export type Hex32 = `0x${string}`;
/** `0x` and 40 hexadecimal digits. */
export type Address = `0x${string}`;
/** `0x` and any even number of hexadecimal digits: a signature, a transaction, a hash. */
export type Hex = `0x${string}`;

/** A signature holds for one contract on one chain only. */
export interface MessageDomain {
  readonly chainId: number;
  /** The LeaseEscrow that will be asked to honour the message. */
  readonly escrow: Address;
}

export interface Quote {
  /** Which network of escrows, tokens and checkers this belongs to; the contract refuses any but its own. */
  readonly networkId: Hex32;
  /** Who signs the quote and must serve. */
  readonly provider: Address;
  /** Who may withdraw what is earned. */
  readonly payee: Address;
  /** The only account that may open an escrow with this quote. */
  readonly consumer: Address;
  /** keccak256(abi.encode(clusterUID, leaseUID, attempt)): one escrow for one attempt of one lease, for ever. */
  readonly leaseRef: Hex32;
  readonly token: Address;
  /** Base units of `token` for one GPU for one hour, platform fee included. */
  readonly pricePerGpuHour: bigint;
  readonly gpus: number;
  /** The smallest deposit buys this many seconds. */
  readonly minSeconds: number;
  /** At most this many seconds are ever billed. */
  readonly maxSeconds: number;
  /** How long the provider may take to make the node; extends the end of the escrow, never the bill. */
  readonly startTimeoutSeconds: number;
  /** The provider stops serving when this many seconds were served and not vouched for. */
  readonly graceSeconds: number;
  /** 0 OnDemand, 1 Spot. */
  readonly capacityType: number;
  /** keccak256 of what is promised: see `promisedNode` in `api/gateway.ts`. */
  readonly specHash: Hex32;
  /** Commitment of the consumer to a salt, from which checkers will be drawn; zero when no checker is wanted. */
  readonly saltCommit: Hex32;
  /** Who brought the consumer; paid out of the platform fee. Zero address for nobody. */
  readonly referrer: Address;
  /** Share of the platform fee, in 1/10000; at most half of it. */
  readonly referrerBps: number;
  /** The escrow must be opened before this Unix second. */
  readonly expiresAt: number;
  /** The provider may cancel an unused quote by its nonce. */
  readonly nonce: bigint;
}

export interface Voucher {
  readonly leaseId: Hex32;
  /** Seconds served since the lease began, in all. */
  readonly servedSeconds: number;
  /** The consumer will sign no more: the provider may close at once. */
  readonly last: boolean;
}

export interface Release {
  readonly leaseId: Hex32;
  readonly servedSeconds: number;
}

export interface Access {
  readonly provider: Address;
  /** Base URL of the gateway, without a trailing slash, as the consumer dials it. */
  readonly audienceUrl: string;
  readonly leaseId: Hex32;
  /** Random: a gateway accepts each once. */
  readonly nonce: Hex32;
  readonly expiresAt: number;
}

/** Seals a settled lease's receipt (api/receipt.ts). */
export interface ReceiptSeal {
  readonly leaseId: Hex32;
  /** keccak256 of the receipt's canonical JSON without its seal. */
  readonly contentHash: Hex32;
}

export interface Signed<T> {
  readonly message: T;
  readonly signature: Hex;
}

/** EIP-712 type declarations, in the order in which they are hashed. */
export const messageTypes = {
  Quote: [
    { name: 'networkId', type: 'bytes32' },
    { name: 'provider', type: 'address' },
    { name: 'payee', type: 'address' },
    { name: 'consumer', type: 'address' },
    { name: 'leaseRef', type: 'bytes32' },
    { name: 'token', type: 'address' },
    { name: 'pricePerGpuHour', type: 'uint128' },
    { name: 'gpus', type: 'uint32' },
    { name: 'minSeconds', type: 'uint32' },
    { name: 'maxSeconds', type: 'uint32' },
    { name: 'startTimeoutSeconds', type: 'uint32' },
    { name: 'graceSeconds', type: 'uint32' },
    { name: 'capacityType', type: 'uint8' },
    { name: 'specHash', type: 'bytes32' },
    { name: 'saltCommit', type: 'bytes32' },
    { name: 'referrer', type: 'address' },
    { name: 'referrerBps', type: 'uint16' },
    { name: 'expiresAt', type: 'uint64' },
    { name: 'nonce', type: 'uint256' },
  ],
  Voucher: [
    { name: 'leaseId', type: 'bytes32' },
    { name: 'servedSeconds', type: 'uint32' },
    { name: 'last', type: 'bool' },
  ],
  Release: [
    { name: 'leaseId', type: 'bytes32' },
    { name: 'servedSeconds', type: 'uint32' },
  ],
  Access: [
    { name: 'provider', type: 'address' },
    { name: 'audienceUrl', type: 'string' },
    { name: 'leaseId', type: 'bytes32' },
    { name: 'nonce', type: 'bytes32' },
    { name: 'expiresAt', type: 'uint64' },
  ],
  Receipt: [
    { name: 'leaseId', type: 'bytes32' },
    { name: 'contentHash', type: 'bytes32' },
  ],
} as const;

/** Name and version in the EIP-712 domain separator. */
export const domainName = 'gpulease';
export const domainVersion = '1';
