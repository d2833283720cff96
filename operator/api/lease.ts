/** GpuLease: a wish to rent GPUs, and its record. One lease is one virtual node. */
import { z } from 'zod';
import { gpuModelNames } from './models.ts';
import { capacityType, partition } from './offer.ts';
import {
  baseUnits,
  cel,
  conditions,
  dnsLabel,
  hex32,
  type Kind,
  type KindDefinition,
  money,
  quantity,
  seconds,
  time,
} from './schema.ts';

export const requirementOperators = ['In', 'NotIn', 'Exists', 'DoesNotExist', 'Gt', 'Gte', 'Lt', 'Lte'] as const;

export const requirement = z
  .object({
    key: z.string().min(1).max(317),
    operator: z.enum(requirementOperators),
    values: z.array(z.string().max(63)).max(32).optional(),
  })
  .meta(
    cel(
      {
        rule: "self.operator in ['In','NotIn'] ? has(self.values) && size(self.values) > 0 : true",
        message: 'In and NotIn need at least one value',
      },
      {
        rule: "self.operator in ['Exists','DoesNotExist'] ? !has(self.values) || size(self.values) == 0 : true",
        message: 'Exists and DoesNotExist take no values',
      },
      {
        rule: "self.operator in ['Gt','Gte','Lt','Lte'] ? has(self.values) && size(self.values) == 1 && self.values[0].matches('^[0-9]{1,18}$') : true",
        message: 'Gt, Gte, Lt and Lte take exactly one whole number',
      },
    ),
  );
export type Requirement = z.infer<typeof requirement>;

/** In spec.access.namespaces: all of them. */
export const everyNamespace = '*';

export const podIPs = ['None', 'Provider'] as const;
/** One Service of the consumer's cluster that pods on the node may reach. */
export const namedService = z.object({
  name: z.string().min(1).max(63).regex(dnsLabel).describe('Name of the Service.'),
  namespace: z
    .string()
    .min(1)
    .max(63)
    .regex(dnsLabel)
    .optional()
    .describe(
      "Its namespace. Default: the lease's own. A Service of another namespace must agree: its annotation gpulease.dev/lease-namespaces names the lease's namespace, or is *.",
    ),
  ports: z
    .array(z.int32().min(1).max(65535))
    .min(1)
    .max(16)
    .optional()
    .meta({ 'x-kubernetes-list-type': 'set' })
    .describe('Ports of the Service, TCP. Default: all its TCP ports, the first 16 of them.'),
});
export type NamedService = z.infer<typeof namedService>;

const ownKeys =
  "k.startsWith('gpulease.dev/') || k.contains('.gpulease.dev/') || k.startsWith('node-role.kubernetes.io/')";

export const leaseSpec = z
  .object({
    suspend: z
      .boolean()
      .default(false)
      .describe('While true nothing is quoted and no money is moved. A running lease is not affected.'),
    gpu: z
      .object({
        models: z
          .array(z.enum(gpuModelNames))
          .min(1)
          .max(16)
          .meta({ 'x-kubernetes-list-type': 'set' })
          .describe('Models that will do, in no order; the cheapest offer wins.'),
        count: z.int32().min(1).max(16).default(1).describe('GPUs on the node.'),
        minMemoryMiB: z
          .int32()
          .min(1024)
          .max(2097152)
          .optional()
          .describe('Least memory of one GPU, as nvidia.com/gpu.memory tells it.'),
        partition: partition
          .optional()
          .describe(
            'What one GPU of the lease is to be. None, the default: a whole GPU. MIG-1g.10gb: a MIG device of that profile. TimeSliced or MPS: a turn on a GPU that strangers use as well. Never given anything else than what stands here.',
          ),
        interconnect: z.enum(['Any', 'PCIe', 'NVLink']).default('Any'),
      })
      .meta(cel({ rule: 'self == oldSelf', message: 'spec.gpu is immutable: delete the lease and create another' })),
    resources: z
      .object({
        requests: z.object({
          cpu: quantity.optional(),
          memory: quantity.optional(),
          'ephemeral-storage': quantity.optional(),
        }),
      })
      .optional()
      .describe('Least CPU, memory and disk of the node. Default: what the offer gives with its GPUs.'),
    requirements: z
      .array(requirement)
      .max(32)
      .default([])
      .meta(
        cel({
          rule: "self.all(r, !(r.key in ['nvidia.com/gpu.product','nvidia.com/gpu.count','nvidia.com/gpu.memory']))",
          message: 'use spec.gpu for product, count and memory',
        }),
      )
      .describe('Labels that the node must have, e.g. a region.'),
    providerSelector: z
      .object({ matchLabels: z.record(z.string().max(317), z.string().max(63)) })
      .optional()
      .describe('Labels of the GpuProviders that may serve. Default: all that are Ready.'),
    capacityType: capacityType.default('OnDemand'),
    pricing: z
      .object({
        maxPricePerGpuHour: money('Never pay more for one GPU for one hour, fee included.').meta(
          cel({ rule: "quantity(self).isGreaterThan(quantity('0'))", message: 'maxPricePerGpuHour must be above 0' }),
        ),
        assetSymbol: z.string().min(1).max(12).default('USDC').describe('Token to pay with.'),
        spendLimit: money(
          'Never pay more for the whole lease. Default: price × count × term. The lease ends, drained, when it is reached.',
        )
          .meta(cel({ rule: "quantity(self).isGreaterThan(quantity('0'))", message: 'spendLimit must be above 0' }))
          .optional(),
        alternatives: z
          .array(
            z.object({
              assetSymbol: z.string().min(1).max(12).describe('Token that will do as well.'),
              maxPricePerGpuHour: money('Never pay more of it for one GPU for one hour, fee included.').meta(
                cel({
                  rule: "quantity(self).isGreaterThan(quantity('0'))",
                  message: 'maxPricePerGpuHour must be above 0',
                }),
              ),
              spendLimit: money('Never pay more of it for the whole lease. Default: price × count × term.')
                .meta(
                  cel({ rule: "quantity(self).isGreaterThan(quantity('0'))", message: 'spendLimit must be above 0' }),
                )
                .optional(),
            }),
          )
          .max(3)
          .optional()
          .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['assetSymbol'] })
          .describe(
            'Other tokens that may be paid with, each with its own limits. The cheapest of all is taken: by what the operator was told that a token is worth (--token-value), or else the first, in the order written, that can be paid with. status.selection.rails shows what each would cost.',
          ),
      })
      .meta(
        cel({
          rule: '!has(self.alternatives) || self.alternatives.all(a, a.assetSymbol != self.assetSymbol)',
          message: 'assetSymbol is no alternative to itself',
        }),
      )
      .describe('Money limits. There is no unlimited lease.'),
    term: z
      .object({
        durationSeconds: seconds(60, 2592000)
          .default(3600)
          .describe('Seconds to serve, counted from Ready. Nothing is billed beyond.'),
      })
      .default({ durationSeconds: 3600 })
      .meta(cel({ rule: 'self == oldSelf', message: 'spec.term is immutable: create another lease' })),
    approval: z
      .enum(['Automatic', 'Manual'])
      .default('Automatic')
      .describe('Manual: the lease waits with its quote in status until spec.approvedQuoteHash names that quote.'),
    approvedQuoteHash: hex32('The quote that may be paid for: copy of status.quote.hash.').optional(),
    startTimeoutSeconds: seconds(30, 86400)
      .default(900)
      .describe('How long a provider may take to make the node before the next offer is tried.'),
    retry: z
      .object({
        maxAttempts: z.int32().min(1).max(20).default(3),
        avoidFailedProviderSeconds: seconds(0, 604800).default(3600),
      })
      .default({ maxAttempts: 3, avoidFailedProviderSeconds: 3600 }),
    drainTimeoutSeconds: seconds(0, 86400)
      .default(300)
      .describe('How long pods may take to end before the node goes; draining begins this long before the term ends.'),
    access: z
      .object({
        namespaces: z
          .array(
            z
              .string()
              .min(1)
              .max(63)
              .regex(/^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$/),
          )
          .max(32)
          .optional()
          .meta(
            cel({
              rule: `!('${everyNamespace}' in self) || size(self) == 1`,
              message: '"*" means every namespace: it stands alone',
            }),
          )
          .describe(
            'Namespaces whose pods may run on the node. Default: the lease\'s own. "*" alone: every namespace, also those made later; then anybody who may create a pod in this cluster may use what the lease pays for, and what such a pod refers to goes to the provider. Not with node.untainted unless that is meant: pods that know nothing of the lease would go there.',
          ),
        serviceAccountTokens: z
          .enum(['None', 'Bound'])
          .default('None')
          .describe(
            'Whether pods on the node get tokens of their service accounts. None: no token of this cluster leaves it. Bound: a token that is bound to the pod and lasts an hour at most is sent to the provider, and renewed while the pod runs. Whoever runs the node can read it and, until it expires or the pod is deleted, do whatever the account may do here; with another audience, whatever that audience lets it do. Give the accounts of such pods few rights. Set back to None, the tokens are taken away from the provider; pods that were started without a token get none later.',
          ),
      })
      .default({ serviceAccountTokens: 'None' }),
    services: z
      .array(namedService)
      .max(32)
      .default([])
      .meta(
        cel({
          // Escaped, as CEL has reserved the word.
          rule: "self.all(a, self.exists_one(b, b.name == a.name && (has(b.__namespace__) ? b.__namespace__ : '') == (has(a.__namespace__) ? a.__namespace__ : '')))",
          message: 'a Service is named once',
        }),
      )
      .describe(
        'Services of this cluster that pods on the node may reach, as NAME (of their own namespace), NAME.NAMESPACE, NAME.NAMESPACE.svc and NAME.NAMESPACE.svc.cluster.local. TCP only. What leaves the cluster: these names and ports, and what is said over the connections. The provider carries the connections, sees what is not encrypted, and could open some by itself while the lease lasts: name only Services that ask for a password, a token or a certificate. A pod knows the names that were here when it was created. Default: none.',
      ),
    node: z
      .object({
        labels: z
          .record(z.string().max(317), z.string().max(63))
          .optional()
          .meta(
            cel({
              rule: `self.all(k, !(${ownKeys}))`,
              message: 'labels of gpulease.dev and node-role.kubernetes.io are not yours to set',
            }),
          ),
        taints: z
          .array(
            z.object({
              key: z.string().min(1).max(317),
              value: z.string().max(63).optional(),
              effect: z.enum(['NoSchedule', 'PreferNoSchedule', 'NoExecute']),
            }),
          )
          .max(16)
          .optional(),
        untainted: z
          .boolean()
          .default(false)
          .describe(
            'true: leave out our own taints, so that any pod of the cluster may be scheduled here; pods of other namespaces are still refused.',
          ),
        podIP: z
          .enum(podIPs)
          .default('None')
          .describe(
            "What pods show as their address. None: none, so that Kubernetes makes no endpoint which nobody here could reach. Provider: their address in the provider's network; only where this cluster's pods and nodes can reach that network.",
          ),
        gpusAs: z
          .enum(['Resource', 'Devices'])
          .optional()
          .describe(
            'How pods ask for the GPUs. Resource, the default: by count, as nvidia.com/gpu. Devices: by ResourceClaims of DeviceClass gpulease.dev (Kubernetes 1.34 or newer); the node then shows a ResourceSlice and no nvidia.com/gpu.',
          ),
      })
      .default({ untainted: false, podIP: 'None' })
      .meta(
        cel({
          rule: "(has(self.gpusAs) ? self.gpusAs : 'Resource') == (has(oldSelf.gpusAs) ? oldSelf.gpusAs : 'Resource')",
          message: 'node.gpusAs is immutable: create another lease',
        }),
      ),
  })
  .meta(
    cel(
      {
        rule: 'self.capacityType == oldSelf.capacityType && self.pricing.assetSymbol == oldSelf.pricing.assetSymbol',
        message: 'capacityType and pricing.assetSymbol are immutable: create another lease',
      },
      {
        rule: '(has(self.pricing.alternatives) ? self.pricing.alternatives.map(a, a.assetSymbol) : []) == (has(oldSelf.pricing.alternatives) ? oldSelf.pricing.alternatives.map(a, a.assetSymbol) : [])',
        message: 'the tokens of pricing.alternatives are immutable: create another lease',
      },
      {
        rule: '!has(oldSelf.approvedQuoteHash) || (has(self.approvedQuoteHash) && self.approvedQuoteHash == oldSelf.approvedQuoteHash)',
        message: 'approvedQuoteHash can be set once',
      },
      {
        rule: "!has(self.approvedQuoteHash) || self.approval == 'Manual'",
        message: 'approvedQuoteHash needs approval: Manual',
      },
    ),
  );

export const leaseAttempt = z.object({
  number: z.int32().min(1),
  offerName: z.string().max(253),
  providerName: z.string().max(63),
  startedAt: time('When the quote was asked for.'),
  endedAt: time('When it was given up.').optional(),
  reason: z.string().max(128).optional(),
  message: z.string().max(1024).optional(),
});

export const leaseStatus = z.object({
  observedGeneration: z.int().min(0).optional(),
  conditions,
  attempt: z.int32().min(0).optional().describe('Number of the current attempt, from 1.'),
  attempts: z.array(leaseAttempt).max(10).optional(),
  quote: z
    .object({
      hash: hex32('EIP-712 hash that the provider signed.'),
      assetSymbol: z.string().max(12),
      pricePerGpuHour: z.string().max(40).describe('Whole tokens.'),
      totalForTerm: z.string().max(40).describe('Most that can be billed. Whole tokens.'),
      expiresAt: time('The escrow must be open by then.'),
    })
    .optional(),
  selection: z
    .object({
      considered: z.int32(),
      eligible: z.int32(),
      rejected: z
        .array(z.object({ reason: z.string().max(64), count: z.int32(), closest: z.string().max(256).optional() }))
        .max(16),
      rails: z
        .array(
          z.object({
            chainId: z.int(),
            assetSymbol: z.string().max(12),
            providerName: z.string().max(63),
            pricePerGpuHour: z.string().max(40),
            total: z.string().max(40).describe('Price × count × term, fee included.'),
            fee: z.string().max(40).describe('Platform fee in it, as the contract takes it now.').optional(),
            value: z.string().max(40).describe('What the total is worth by --token-value.').optional(),
            note: z
              .string()
              .max(128)
              .describe('Why it cannot be paid with just now: it comes last, or, at its maxEscrow, is not asked.')
              .optional(),
          }),
        )
        .max(8)
        .optional()
        .describe('What the lease would cost on each rail, with the best offer there, the one that is taken first.'),
    })
    .optional()
    .describe('Why offers were not taken, and what those cost that were.'),
  offerName: z.string().max(253).optional(),
  providerName: z.string().max(63).optional(),
  nodeName: z.string().max(63).optional(),
  providerID: z.string().max(256).optional(),
  capacity: z.record(z.string().max(317), quantity).optional(),
  startedAt: time('When the node became Ready: billing starts.').optional(),
  expiresAt: time('When the term ends.').optional(),
  endedAt: time('When it was settled.').optional(),
  endReason: z
    .string()
    .max(64)
    .optional()
    .describe(
      'Why it ended: Released, Expired, SpendLimitReached, InsufficientFunds, BudgetExceeded, ProviderHeld, ProviderFault, NodeLost, AttemptsExhausted.',
    ),
  cost: z
    .object({
      assetSymbol: z.string().max(12),
      ratePerHour: z.string().max(40),
      escrowed: z.string().max(40).describe('Locked now: the most that can be lost if everything else fails.'),
      lockable: z
        .string()
        .max(40)
        .optional()
        .describe(
          "Most that is locked at a time for what was not served yet: two hours by default, or the rest of the term. Known before anything is locked. The spend limit holds for it, and the provider's and the operator's limits for all leases together.",
        ),
      lockedUntil: time(
        'While an escrow is open: from then on anybody may have the rest refunded, should provider and operator both be gone.',
      ).optional(),
      accrued: z.string().max(40).describe('Served and vouched for, not more than a minute old.'),
      paid: z.string().max(40).describe('Settled on chain to the provider.'),
      fee: z.string().max(40).describe('Settled on chain as platform fee.'),
      refunded: z.string().max(40),
    })
    .optional()
    .describe('In whole tokens.'),
  settlement: z
    .object({
      chainId: z.int(),
      escrow: z.string().max(42),
      token: z.string().max(42),
      leaseId: hex32('Id of the escrow.'),
      servedSeconds: z.int32().describe('Last voucher given.'),
      depositBaseUnits: baseUnits('Deposited in all.'),
      paidBaseUnits: baseUnits('Settled to the provider.').optional(),
      feeBaseUnits: baseUnits('Platform fee.').optional(),
      refundedBaseUnits: baseUnits('Given back.').optional(),
      openTx: z.string().max(66).optional(),
      closeTx: z.string().max(66).optional(),
    })
    .optional(),
});

export type LeaseAttempt = z.infer<typeof leaseAttempt>;
export type LeaseSpec = z.infer<typeof leaseSpec>;
export type LeaseStatus = z.infer<typeof leaseStatus>;
export type GpuLease = Kind<LeaseSpec, LeaseStatus>;

export const gpuLease: KindDefinition = {
  kind: 'GpuLease',
  plural: 'gpuleases',
  scope: 'Namespaced',
  shortNames: ['gl'],
  description: 'A wish to rent GPUs, and its record. One lease is one virtual node.',
  spec: leaseSpec,
  status: leaseStatus,
  selectableFields: ['.status.providerName', '.status.nodeName', '.spec.capacityType'],
  columns: [
    { name: 'Models', type: 'string', path: '.spec.gpu.models' },
    { name: 'GPUs', type: 'integer', path: '.spec.gpu.count' },
    { name: 'Ready', type: 'string', path: ".status.conditions[?(@.type=='Ready')].status" },
    { name: 'Reason', type: 'string', path: ".status.conditions[?(@.type=='Ready')].reason" },
    { name: 'Provider', type: 'string', path: '.status.providerName' },
    { name: 'Rate/h', type: 'string', path: '.status.cost.ratePerHour' },
    { name: 'Accrued', type: 'string', path: '.status.cost.accrued' },
    { name: 'Node', type: 'string', path: '.status.nodeName' },
    { name: 'Expires', type: 'string', path: '.status.expiresAt' },
    { name: 'Escrowed', type: 'string', path: '.status.cost.escrowed', priority: 1 },
    { name: 'Message', type: 'string', path: ".status.conditions[?(@.type=='Ready')].message", priority: 1 },
    { name: 'Age', type: 'date', path: '.metadata.creationTimestamp' },
  ],
};
