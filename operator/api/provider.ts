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

/** How a certificate is known. */
const certificate = (whose: string) => ({
  caBundle: z
    .string()
    .max(65536)
    .optional()
    .describe(
      whose === 'the gateway'
        ? "Base64 of the PEM certificates to trust. Default: the system's; by Reverse and Relay: the key that the provider's account signed for."
        : "Base64 of the PEM certificates to trust. Default: the system's.",
    ),
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
    .describe(`Pin: SHA-256 of the public key (SPKI) of ${whose}'s certificate, lower-case hexadecimal.`),
});

export const providerSpec = z.object({
  endpoint: z
    .object({
      via: z
        .enum(['Direct', 'Reverse', 'Relay'])
        .default('Direct')
        .describe(
          "How the gateway is reached. Direct: by its url. Reverse: it dials this operator (the gateway's --dial-out, the operator's --reverse-listen), for providers behind NAT. Relay: it and this operator both dial a relay. TLS runs to the gateway itself in each case.",
        ),
      url: z
        .string()
        .max(2048)
        .optional()
        .describe('Base URL of the gateway, https only, without a path at the end. For Direct, and for nothing else.'),
      relay: z
        .object({
          url: z.string().max(2048).describe('URL of the relay, https only, as the gateway dials it (there: wss).'),
          ...certificate('the relay'),
        })
        .optional()
        .describe('For Relay, and for nothing else. The relay sees who talks to whom, and nothing of what is said.'),
      ...certificate('the gateway'),
    })
    .meta(
      cel(
        {
          rule: "self.via != 'Direct' || has(self.url)",
          message: 'url is missing: the URL of the gateway, or via: Reverse or Relay',
        },
        {
          rule: "self.via == 'Direct' || !has(self.url)",
          message:
            'url is for via: Direct; a provider that is reached by Reverse or Relay is known by identity.address',
        },
        {
          rule: "(self.via == 'Relay') == has(self.relay)",
          message: 'relay and via: Relay go together: the relay that the gateway dials, and that via is for',
        },
        {
          rule: "!has(self.url) || isURL(self.url) && url(self.url).getScheme() == 'https'",
          message: 'url must be an https URL, e.g. https://gpu.example.com:8443',
        },
        { rule: "!has(self.url) || !self.url.endsWith('/')", message: 'url must not end with a slash' },
        {
          rule: "!has(self.relay) || isURL(self.relay.url) && url(self.relay.url).getScheme() == 'https'",
          message: 'relay.url must be an https URL, e.g. https://relay.example.com:9444',
        },
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
  connection: z
    .object({
      via: z.enum(['Direct', 'Reverse', 'Relay']),
      state: z
        .enum(['Up', 'Down', 'OnDemand'])
        .describe('Of the link. OnDemand: connections are made when they are needed; that is how Direct is.'),
      through: z.string().max(253).optional().describe("Where the gateway's link comes from, or the relay."),
      links: z.int32().min(0).optional().describe('Links that are up: one for each replica of the gateway.'),
      since: time('Since when it is up.').optional(),
      message: z.string().max(512).optional().describe('Why it is down.'),
    })
    .optional()
    .describe('How the provider is reached now.'),
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
    { name: 'Via', type: 'string', path: '.status.connection.via' },
    { name: 'Link', type: 'string', path: '.status.connection.state', priority: 1 },
    { name: 'URL', type: 'string', path: '.spec.endpoint.url', priority: 1 },
    { name: 'Address', type: 'string', path: '.spec.identity.address', priority: 1 },
    { name: 'Age', type: 'date', path: '.metadata.creationTimestamp' },
  ],
};
