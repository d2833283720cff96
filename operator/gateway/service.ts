/**
 * What the HTTP side needs of the provider's side. Calls throw `Refusal` for a no that the caller may read; anything else
 * that they throw is our own fault or silence, and is told without detail.
 */
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import type {
  AccessRequest,
  AllocationInfo,
  LeaseRequest,
  OfferList,
  ProviderInfo,
  QuoteRequest,
  ReleaseReceipt,
  ServicesAnswer,
  ServicesRequest,
  SignedQuote,
  VoucherReceipt,
  VoucherRequest,
} from '../api/gateway.ts';
import type { Hex32 } from '../api/messages.ts';
import type { NodePage } from '../core/allocation/node-pages.ts';
import type { LeaseRecord } from '../core/allocation/record.ts';
import type { TenantService, TunnelPlace } from '../core/allocation/tenant-services.ts';

export interface GatewayService {
  info(): ProviderInfo;
  offers(): OfferList;
  /** Answers when the offers differ from those of `tag`, or after so long; without a list where they do not. */
  offersAfter?(
    tag: string | undefined,
    waitSeconds: number,
    signal?: AbortSignal,
  ): Promise<{ readonly tag: string; readonly list?: OfferList }>;
  quote(request: QuoteRequest, signal?: AbortSignal): Promise<SignedQuote>;
  allocate(request: LeaseRequest, signal?: AbortSignal): Promise<AllocationInfo>;
  /** The account that pays for the lease, as far as it is known without asking anybody. */
  consumerOf(leaseId: Hex32): string | undefined;
  /** Provider and signature; audience, time and nonce are checked on this side. */
  checkAccess(leaseId: Hex32, request: AccessRequest, signal?: AbortSignal): Promise<void>;
  allocation(leaseId: Hex32, signal?: AbortSignal): Promise<AllocationInfo>;
  /**
   * Tells how it is now, and whenever it has changed; `undefined`, every few seconds, that it has not. Until the signal fires, or
   * there is no such lease any more. Throws as `allocation` does, before it has told anything.
   */
  followAllocation(
    leaseId: Hex32,
    tell: (info: AllocationInfo | undefined) => void,
    signal: AbortSignal,
  ): Promise<void>;
  voucher(leaseId: Hex32, request: VoucherRequest, signal?: AbortSignal): Promise<VoucherReceipt>;
  release(leaseId: Hex32, signal?: AbortSignal): Promise<ReleaseReceipt>;
  node(leaseId: Hex32, signal?: AbortSignal): Promise<object>;
  /** The lease's record, while its tenant may be talked to. */
  tenant(leaseId: Hex32, signal?: AbortSignal): Promise<LeaseRecord>;
  /** A token of the tenant's own account in the provider's cluster. */
  token(leaseId: Hex32, signal?: AbortSignal): Promise<string>;
  forgetToken(leaseId: Hex32): void;
  /** The consumer's Services that the tenant's pods may reach: all of them, each time. */
  putServices(leaseId: Hex32, request: ServicesRequest, signal?: AbortSignal): Promise<ServicesAnswer>;
  listServices(leaseId: Hex32, signal?: AbortSignal): Promise<readonly TenantService[]>;
  pointServices(leaseId: Hex32, place: TunnelPlace, signal?: AbortSignal): Promise<void>;
  unpointServices(leaseId: Hex32, holder: string, signal?: AbortSignal): Promise<void>;
  /** Whether this is the address of a pod of the tenant, as far as it is known now. */
  isTenantPod(leaseId: Hex32, address: string, signal?: AbortSignal): Promise<boolean>;
}

/** What the provider's kubelets measure, as far as it is about one tenant. */
export interface NodePages {
  /** Throws a Refusal that the tenant may read. */
  read(nodeName: string, page: NodePage, namespace: string, signal?: AbortSignal): Promise<string>;
}

export interface UpstreamRequest {
  readonly method: string;
  readonly path: string;
  readonly headers?: Record<string, string | string[]>;
  readonly body?: string | Buffer;
  /** Until the headers; 0 waits for as long as the caller does. */
  readonly timeoutSeconds?: number;
  /** `calls`: the answer is short and read at once. `watches`: nothing comes but a watch. Default: `streams`. */
  readonly over?: 'calls' | 'streams' | 'watches';
}

/** The provider's API server, spoken to with a tenant's token and with nothing else. */
export interface Upstream {
  raw(request: UpstreamRequest, options: { as: string }, signal?: AbortSignal): Promise<IncomingMessage>;
  upgrade(
    request: UpstreamRequest,
    options: { as: string },
    signal?: AbortSignal,
  ): Promise<
    { response: IncomingMessage; socket: Duplex; head: Buffer } | { response: IncomingMessage; socket?: undefined }
  >;
}

export interface GatewayLog {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}
