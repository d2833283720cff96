/**
 * What consumers and gateways say to each other over HTTP, version 1. Both sides validate with these schemas.
 *
 *   GET  /v1/provider                      who the provider is, and how it may be paid
 *   GET  /v1/openapi.json                  all of this, for programs
 *   GET  /v1/offers                        what it rents out now
 *   POST /v1/quotes                        a signed quote, bound to one consumer and one lease
 *   POST /v1/leases                        here is my escrow: make the node     (repeatable)
 *   POST /v1/leases/{leaseId}/token        an Access signature → a bearer token for this lease, minutes long
 *   GET  /v1/leases/{leaseId}              the allocation                        (bearer, as all below)
 *   POST /v1/leases/{leaseId}/vouchers     stored before it is acknowledged
 *   POST /v1/leases/{leaseId}/release      serve no longer: tears the tenant down, answers with a signed Release
 *   PUT  /v1/leases/{leaseId}/services     the consumer's Services that its pods may reach: an address for each
 *   POST /v1/leases/{leaseId}/forward      upgrade: connections to the tenant's pods, see below
 *   POST /v1/leases/{leaseId}/reverse      upgrade: connections from them to the consumer's Services
 *   POST /v1/leases/{leaseId}/batch        several POST and DELETE of kube/… at once; an answer a line, as each is known
 *   *    /v1/leases/{leaseId}/kube/…       the narrow proxy to the provider's Kubernetes API, see below
 *
 * The proxy knows one namespace, the tenant's, which the caller does not name:
 *   kube/pods, kube/configmaps, kube/secrets            GET (list, watch=true), POST
 *   kube/{pods,configmaps,secrets}/NAME                 GET, PUT (whole object, admitted anew), DELETE; the PUT of a pod
 *                                                       changes its images, deadline, our annotations, cpu and memory, and
 *                                                       adds ephemeral containers
 *   kube/persistentvolumeclaims                         GET, POST; refused where the allocation has no `storage`
 *   kube/persistentvolumeclaims/NAME                    GET, DELETE
 *   kube/pods/NAME/{log,exec,attach,portforward}        GET, or an upgrade carried through unread
 *   kube/events                                         GET (list, watch=true)
 *   kube/node                                           GET: the real node's status, reduced to this lease
 *   kube/node/stats                                     GET: its kubelet's /stats/summary, the tenant's pods alone
 *   kube/node/metrics/{resource,cadvisor,probes}        GET: its kubelet's pages of these names, likewise
 *
 * Of the node's own figures only the time at which they were taken is told; node_cpu_usage_seconds_total is the sum of the
 * tenant's pods. Pages are seconds old at most. 501: the node has no kubelet that measures.
 *
 * Both tunnels are HTTP/2 inside the upgraded connection, one CONNECT stream a connection, so that each has its own flow
 * control, ends one direction at a time, and cannot be taken for ended when it was broken off. With `forward` the caller is
 * the client, and the authority POD:PORT; with `reverse` the roles are turned round: the gateway is the client, and the
 * authority NAME.NAMESPACE:PORT is one of those that `services` named.
 *
 * Numbers of base units travel as decimal strings. Errors are problem documents (RFC 9457).
 */
import { z } from 'zod';
import { gpuModelNames } from './models.ts';
import { capacityType, offerPrice, partition } from './offer.ts';
import { address, baseUnits, dnsLabel, hex32, time } from './schema.ts';

/** Bytes of JSON that either side accepts in one body. A pod with its largest legal annotations fits. */
export const maxBodyBytes = 1_572_864;

export const problem = z.object({
  type: z.string().max(256).describe('about:blank, or gpulease:<reason>.'),
  title: z.string().max(256),
  status: z.int().min(400).max(599),
  detail: z.string().max(2048).optional(),
  /** A reason that callers act on; see `gatewayReasons`. */
  reason: z.string().max(64).optional(),
  errors: z
    .array(
      z.object({ field: z.string().max(256), given: z.string().max(256).optional(), message: z.string().max(512) }),
    )
    .max(32)
    .optional(),
});
export type Problem = z.infer<typeof problem>;

/** Refusals that a consumer's operator tells apart. All else is read by its HTTP status. */
export const gatewayReasons = {
  CapacityExhausted: 'the GPUs are not free now',
  OfferNotFound: 'no offer of that name',
  RailNotAccepted: 'not paid in that token, chain or contract',
  TermNotAccepted: 'shorter or longer than the offer allows',
  QuoteExpired: 'the quote ran out before its escrow was seen',
  EscrowNotFound: 'no such escrow on chain yet',
  EscrowMismatch: 'the escrow does not match the quote',
  EscrowClosed: 'the escrow is closing or closed',
  LeaseEnded: 'this lease was served and has ended',
  LeaseNotFound: 'no allocation for this lease',
  Unauthorized: 'the signature or token does not open this lease',
  VoucherRefused: 'the voucher does not verify, or counts more seconds than passed',
  PodRefused: 'the pod asks for what tenants may not have',
  ResizeRefused: 'the running pod cannot have those resources; everything else of the change was carried out',
  Held: 'the provider takes no new leases now',
  Blocked: 'the provider does not serve this account',
  FirstContact: 'an account that never paid here gets one lease at a time, until something of it was settled',
  ServicesNotOffered: 'the provider carries no connections to Services of its consumers',
} as const;
export type GatewayReason = keyof typeof gatewayReasons;

const railInfo = z.object({
  chainId: z.int().min(1),
  escrow: address('LeaseEscrow contract.'),
  token: address('Token contract.'),
  assetSymbol: z.string().min(1).max(12),
  decimals: z.int().min(0).max(36),
});

export const providerInfo = z.object({
  address: address('Signs the quotes.'),
  networkId: hex32('Network that the quotes are made for.'),
  name: z.string().max(63),
  version: z.string().max(64),
  rails: z.array(railInfo).min(1).max(8),
  /** The gateway's clock, so that a consumer sees skew before it signs. */
  now: time('Clock of the gateway.'),
});
export type ProviderInfo = z.infer<typeof providerInfo>;

const resources = z.object({
  cpu: z.string().max(32),
  memory: z.string().max(32),
  ephemeralStorage: z.string().max(32),
});
export type Resources = z.infer<typeof resources>;

export const offerInfo = z.object({
  name: z.string().min(1).max(63),
  model: z.enum(gpuModelNames),
  /** Absent: whole GPUs. */
  partition: partition.optional(),
  interconnect: z.enum(['PCIe', 'NVLink']),
  capacityType,
  prices: z.array(offerPrice).min(1).max(4),
  minDurationSeconds: z.int32().min(60),
  maxDurationSeconds: z.int32().min(60),
  product: z.string().max(63),
  memoryMiB: z.int32().min(0),
  region: z.string().max(63).optional(),
  zone: z.string().max(63).optional(),
  total: z.int32().min(0),
  available: z.int32().min(0),
  largestAvailable: z.int32().min(0),
  resourcesPerGpu: resources,
  labels: z.record(z.string().max(317), z.string().max(63)),
});
export type OfferInfo = z.infer<typeof offerInfo>;

export const offerList = z.object({
  offers: z.array(offerInfo).max(200),
  observedAt: time('When the nodes were last looked at.'),
});
export type OfferList = z.infer<typeof offerList>;

/** What the provider promises to serve. Its canonical JSON hash is the quote's `specHash`. */
export const promisedNode = z.object({
  offerName: z.string().min(1).max(63),
  model: z.enum(gpuModelNames),
  /** What one of `gpus` is. Absent: a whole GPU. */
  partition: partition.optional(),
  gpus: z.int32().min(1).max(16),
  resources,
});
export type PromisedNode = z.infer<typeof promisedNode>;

export const quoteRequest = z.object({
  offerName: z.string().min(1).max(63),
  consumer: address('Account that will open the escrow.'),
  leaseRef: hex32('keccak256(abi.encode(clusterUID, leaseUID, attempt)).'),
  chainId: z.int().min(1),
  escrow: address('LeaseEscrow contract.'),
  token: address('Token to pay with.'),
  gpus: z.int32().min(1).max(16),
  maxSeconds: z.int32().min(60).max(2592000),
  startTimeoutSeconds: z.int32().min(30).max(86400),
  /** How long the quote should hold, e.g. until a person has approved it. The gateway may give less. Default 120. */
  validSeconds: z.int32().min(30).max(3600).optional(),
  /** Least resources of the node, Kubernetes quantities. Default: the offer's share for these GPUs. */
  requests: resources.partial().optional(),
});
export type QuoteRequest = z.infer<typeof quoteRequest>;

/** `Quote` of api/messages.ts as JSON: bigints are decimal strings. */
export const quoteJson = z.object({
  networkId: hex32('Network.'),
  provider: address('Signer.'),
  payee: address('Who may withdraw.'),
  consumer: address('Who may open.'),
  leaseRef: hex32('Lease and attempt.'),
  token: address('Token.'),
  pricePerGpuHour: baseUnits('Price, fee included.'),
  gpus: z.int32().min(1).max(16),
  minSeconds: z.int32().min(0),
  maxSeconds: z.int32().min(1),
  startTimeoutSeconds: z.int32().min(0),
  graceSeconds: z.int32().min(1),
  capacityType: z.int().min(0).max(1),
  specHash: hex32('Hash of the promised node.'),
  saltCommit: hex32('Commitment for the choice of checkers, or zero.'),
  referrer: address('Or the zero address.'),
  referrerBps: z.int().min(0).max(5000),
  expiresAt: z.int().min(0),
  nonce: z
    .string()
    .max(78)
    .regex(/^[0-9]+$/),
});
export type QuoteJson = z.infer<typeof quoteJson>;

const signature = z
  .string()
  .min(4)
  .max(2050)
  .regex(/^0x([0-9a-fA-F]{2})+$/);

export const signedQuote = z.object({
  chainId: z.int().min(1),
  escrow: address('LeaseEscrow contract.'),
  quote: quoteJson,
  signature,
  node: promisedNode,
});
export type SignedQuote = z.infer<typeof signedQuote>;

/** POST /v1/leases: asks for the allocation of an escrow that is on chain. */
export const leaseRequest = signedQuote;
export type LeaseRequest = SignedQuote;

export const accessRequest = z.object({
  provider: address('Provider that is spoken to.'),
  audienceUrl: z.string().max(2048),
  nonce: hex32('Random, used once.'),
  expiresAt: z.int().min(0),
  signature,
});
export type AccessRequest = z.infer<typeof accessRequest>;

export const accessToken = z.object({ token: z.string().min(1).max(2048), expiresAt: z.int().min(0) });
export type AccessToken = z.infer<typeof accessToken>;

/**
 * How much of its nodes a provider gives to the pods of a lease. baseline: nothing of the host. trusted: the host's network
 * and files, as only somebody who owns both clusters would want it.
 */
export const tenantProfiles = ['baseline', 'trusted'] as const;
export type TenantProfile = (typeof tenantProfiles)[number];

/**
 * What the provider set aside for one lease.
 * Provisioning: the tenant is being made. Serving: pods may run. Suspended: unpaid beyond grace, pods were ended; vouchers
 * no longer help. Ended: released, closed or expired; nothing is left but the record.
 */
export const allocationInfo = z.object({
  leaseId: hex32('Id of the escrow.'),
  state: z.enum(['Provisioning', 'Serving', 'Suspended', 'Ended']),
  reason: z.string().max(64).optional(),
  message: z.string().max(1024).optional(),
  gpus: z.int32().min(0),
  resources,
  /** Largest number of pods the tenant may have. */
  pods: z.int32().min(0),
  nodeLabels: z.record(z.string().max(317), z.string().max(63)),
  nodeInfo: z.record(z.string().max(64), z.string().max(256)),
  /** The real node answers its own control plane. */
  nodeReady: z.boolean(),
  nodeMessage: z.string().max(1024).optional(),
  /** Absent: baseline. */
  tenantProfile: z.enum(tenantProfiles).optional(),
  /** Bytes, a Kubernetes quantity: as much may the tenant's PersistentVolumeClaims ask for in all. Absent: it may have none. */
  storage: z.string().max(32).optional(),
  /** Highest voucher stored here. */
  vouchedSeconds: z.int32().min(0),
  graceSeconds: z.int32().min(0),
  servingSince: time('When the allocation became Serving.').optional(),
  /** The provider is taken out of service and ends the allocation then: drain it before. */
  leaveBy: time('When the provider ends the allocation.').optional(),
});
export type AllocationInfo = z.infer<typeof allocationInfo>;

/** Who follows an allocation hears so often, in seconds, that it is as it was; as long as the provider's cluster answers. */
export const allocationBeatSeconds = 5;

export const voucherRequest = z.object({ servedSeconds: z.int32().min(0), last: z.boolean(), signature });
export type VoucherRequest = z.infer<typeof voucherRequest>;
export const voucherReceipt = z.object({ servedSeconds: z.int32().min(0) });
export type VoucherReceipt = z.infer<typeof voucherReceipt>;

/** The answer to POST …/release, once nothing of the tenant runs; before that the answer is 202 with `state: Ending`. */
export const releaseReceipt = z.object({
  state: z.enum(['Ending', 'Ended']),
  servedSeconds: z.int32().min(0).optional(),
  /** Provider's signature over Release{leaseId, servedSeconds}. */
  signature: signature.optional(),
});
export type ReleaseReceipt = z.infer<typeof releaseReceipt>;

/** Calls in one batch. */
export const maxBatchedCalls = 64;

/** One write: what it is alone, under the lease, with its query. It is answered with the object's metadata alone. */
const batchedCall = z.object({
  method: z.enum(['POST', 'DELETE']),
  path: z
    .string()
    .max(1024)
    .regex(/^kube\//, 'is a path under kube/'),
  /** The object to be made. */
  body: z.unknown().optional(),
});
export type BatchedCall = z.infer<typeof batchedCall>;

export const batchRequest = z.object({ calls: z.array(batchedCall).min(1).max(maxBatchedCalls) });
export type BatchRequest = z.infer<typeof batchRequest>;

/** An object of JSON a line. */
export const batchType = 'application/x-ndjson';

/** One line. A call without one was cut off: whether it was carried out is not known. */
export const batchedAnswer = z.object({
  call: z
    .int32()
    .min(0)
    .max(maxBatchedCalls - 1)
    .describe('Which of the calls, from 0.'),
  status: z.int32().min(100).max(599),
  retryAfter: z.string().max(5).optional().describe('Seconds, with a status that asks to wait.'),
  body: z.unknown().describe('Metadata of the object, or a problem document.'),
});
export type BatchedAnswer = z.infer<typeof batchedAnswer>;

/** What the two tunnels are called in an upgrade. */
export const forwardProtocol = 'gpulease-forward';
export const reverseProtocol = 'gpulease-reverse';

/** Connections that one lease may have open in each direction. */
export const maxTunnelStreams = 1024;

const label = z.string().min(1).max(63).regex(dnsLabel);
const serviceKey = { namespace: label, name: label };

export const servicesRequest = z.object({
  /** All of them: a Service that is no longer here is taken away. */
  services: z
    .array(
      z.object({
        ...serviceKey,
        /** Empty for a Service that is not there yet: it gets its address already. */
        ports: z.array(z.object({ name: label.optional(), port: z.int32().min(1).max(65535) })).max(16),
      }),
    )
    .max(32),
});
export type ServicesRequest = z.infer<typeof servicesRequest>;

/** The addresses by which pods of the tenant reach them; they stay while the Service is named. */
export const servicesAnswer = z.object({
  services: z
    .array(
      z.object({
        ...serviceKey,
        address: z
          .string()
          .max(45)
          .regex(/^[0-9a-fA-F:.]+$/),
      }),
    )
    .max(32),
});
export type ServicesAnswer = z.infer<typeof servicesAnswer>;
