/** GpuProvider: who rents GPUs out to this cluster: where to reach them, who they are on chain, how much to trust them with. */
import { z } from 'zod';
import { address, cel, conditions, type Kind, type KindDefinition, money, seconds, time } from './schema.ts';

export const rail = z.object({
  chainId: z.int().min(1).max(9007199254740991).describe('EIP-155 id of the chain, e.g. 42161 for Arbitrum One.'),
  escrow: address('Address of the LeaseEscrow contract.'),
  token: address('Address of the token that is paid with.'),
  assetSymbol: z
    .string()
    .min(1)
    .max(12)
    .describe('Symbol of the token, as leases and offers name it. Checked against the token.'),
  maxEscrow: money(
    'Most that may be locked with this provider on this rail at any time: the largest loss there can be.',
  ),
});
export type Rail = z.infer<typeof rail>;

export const providerSpec = z.object({
  endpoint: z
    .object({
      url: z.string().max(2048).describe('Base URL of the gateway, https only, without a path at the end.'),
      caBundle: z
        .string()
        .max(65536)
        .optional()
        .describe("Base64 of the PEM certificates to trust. Default: the system's."),
      serverName: z
        .string()
        .max(253)
        .optional()
        .describe("Name to expect in the certificate, where it is not the URL's host."),
      spkiSHA256: z
        .string()
        .regex(/^[0-9a-f]{64}$/)
        .max(64)
        .optional()
        .describe("Pin: SHA-256 of the public key (SPKI) of the gateway's certificate, lower-case hexadecimal."),
    })
    .meta(
      cel(
        {
          rule: "isURL(self.url) && url(self.url).getScheme() == 'https'",
          message: 'url must be an https URL, e.g. https://gpu.example.com:8443',
        },
        { rule: "!self.url.endsWith('/')", message: 'url must not end with a slash' },
      ),
    ),
  identity: z
    .object({ address: address("Account that signs the provider's quotes. A quote of any other signer is refused.") })
    .meta(
      cel({
        rule: 'self.address == oldSelf.address',
        message: 'identity.address is immutable: another payee is another provider',
      }),
    ),
  payment: z.object({
    rails: z
      .array(rail)
      .min(1)
      .max(8)
      .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['chainId', 'escrow', 'token'] })
      .describe('How this provider may be paid. The cheapest one shared by both sides is taken.'),
  }),
  limits: z
    .object({
      leases: z.int32().min(0).max(10000).optional().describe('Most leases at a time. Default: no limit.'),
      gpus: z.int32().min(0).max(100000).optional().describe('Most GPUs leased at a time. Default: no limit.'),
      spendPerHour: money(
        'Most that all leases with this provider may cost in an hour, each in its own asset.',
      ).optional(),
    })
    .optional(),
  namespaceSelector: z
    .object({ matchLabels: z.record(z.string().max(317), z.string().max(63)) })
    .optional()
    .describe('Namespaces whose leases may use this provider. Default: all.'),
  weight: z.int32().min(0).max(100).default(50).describe('Breaks ties between offers of the same cost; higher wins.'),
  stopPolicy: z
    .enum(['None', 'Hold', 'HoldAndDrain'])
    .default('None')
    .describe('Hold: no new leases. HoldAndDrain: running leases are drained and ended too.'),
  probe: z
    .object({
      intervalSeconds: seconds(1, 3600).default(15),
      timeoutSeconds: seconds(1, 300).default(5),
      failureThreshold: z.int32().min(1).max(100).default(3),
    })
    .default({ intervalSeconds: 15, timeoutSeconds: 5, failureThreshold: 3 })
    .meta(
      cel({
        rule: 'self.timeoutSeconds <= self.intervalSeconds',
        message: 'timeoutSeconds must not be above intervalSeconds',
      }),
    )
    .describe('How the gateway is watched: it is unreachable after failureThreshold probes in a row failed.'),
});

export const providerStatus = z.object({
  observedGeneration: z.int().min(0).optional(),
  conditions,
  gpus: z
    .array(
      z.object({
        model: z.string().max(32),
        total: z.int32(),
        available: z.int32(),
        minPricePerGpuHour: z.string().max(16),
        assetSymbol: z.string().max(12),
      }),
    )
    .max(32)
    .optional(),
  leases: z.int32().min(0).optional().describe('Leases open now.'),
  leasedGpus: z.int32().min(0).optional(),
  escrowed: z
    .array(z.object({ assetSymbol: z.string().max(12), amount: z.string().max(40), limit: z.string().max(16) }))
    .max(8)
    .optional()
    .describe('What is locked in escrow now, of the limit, in whole tokens.'),
  offers: z.int32().min(0).optional(),
  gatewayVersion: z.string().max(64).optional(),
  lastSeenAt: time('When the gateway last answered. Written at most once a minute.').optional(),
});

export type ProviderSpec = z.infer<typeof providerSpec>;
export type ProviderStatus = z.infer<typeof providerStatus>;
export type GpuProvider = Kind<ProviderSpec, ProviderStatus>;

export const gpuProvider: KindDefinition = {
  kind: 'GpuProvider',
  plural: 'gpuproviders',
  scope: 'Cluster',
  shortNames: ['gpr'],
  description:
    'Who rents GPUs out to this cluster: where to reach them, who they are on chain, and how much they are trusted with.',
  spec: providerSpec,
  status: providerStatus,
  columns: [
    { name: 'Ready', type: 'string', path: ".status.conditions[?(@.type=='Ready')].status" },
    { name: 'Reason', type: 'string', path: ".status.conditions[?(@.type=='Ready')].reason" },
    { name: 'Offers', type: 'integer', path: '.status.offers' },
    { name: 'Leases', type: 'integer', path: '.status.leases' },
    { name: 'URL', type: 'string', path: '.spec.endpoint.url', priority: 1 },
    { name: 'Address', type: 'string', path: '.spec.identity.address', priority: 1 },
    { name: 'Age', type: 'date', path: '.metadata.creationTimestamp' },
  ],
};
