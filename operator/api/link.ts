/**
 * Links: how a provider is reached that nobody can connect to. Its gateway dials out, to the consumer's operator or to a relay,
 * over one WebSocket. On it runs HTTP/2 with the roles turned round: whoever was dialled is the client, the gateway the server,
 * and each CONNECT stream is a raw connection to the gateway, on which TLS runs end to end.
 *
 *   GET /v1/link               upgrade: a gateway offers itself                            operator and relay
 *   GET /v1/reach/{address}    upgrade: a consumer asks for the gateway of that provider    relay
 *
 * On /v1/link three messages of text come first: `challenge` from who was dialled, `registration` from the gateway, signed with
 * the provider's key over that challenge, and `verdict`. On /v1/reach there are none: whoever knows a provider's address may ask
 * for a connection, as whoever knows a URL may. What a consumer may do is decided by the gateway, inside TLS, as ever.
 *
 * Headers of a CONNECT: `gpulease-from`, the caller's address as the one who was dialled sees it, by which the gateway counts
 * requests. Of its answer: `gpulease-gateway-key`, the statement below, by which the caller knows the gateway's certificate; a
 * relay passes it on and cannot make one.
 */
import { z } from 'zod';
import type { Address, Hex32 } from './messages.ts';
import { address, hex32 } from './schema.ts';

export const linkPath = '/v1/link';
export const reachPath = '/v1/reach/';
export const linkProtocol = 'gpulease-link.v1';
export const reachProtocol = 'gpulease-reach.v1';
export const fromHeader = 'gpulease-from';
export const gatewayKeyHeader = 'gpulease-gateway-key';

/** Raw connections that one link carries at a time. */
export const maxLinkStreams = 4096;

const signature = z
  .string()
  .max(132)
  .regex(/^0x[0-9a-fA-F]{130}$/);
/** Unix seconds. */
const instant = z.int().min(0).max(9_999_999_999);

export const challenge = z.object({ challenge: hex32('Random, for this one connection.') });

/** Says who dials. Holds for one connection of one listener: challenge and audience are signed. */
export const registration = z.object({
  provider: address("The provider's account."),
  audienceUrl: z.string().max(2048).describe('Whom the gateway dialled, as `audienceOf` writes it.'),
  challenge: hex32('As it was given on this connection.'),
  instance: hex32('Random for each process of a gateway: its new link takes the place of its earlier one.'),
  expiresAt: instant.describe('Unix seconds.'),
  signature,
});
export type Registration = z.infer<typeof registration>;

export const verdict = z.union([
  z.object({ accepted: z.literal(true) }),
  z.object({
    accepted: z.literal(false),
    why: z.string().max(512),
    /** It will not become true by asking again soon. */
    final: z.boolean().optional(),
  }),
]);
export type Verdict = z.infer<typeof verdict>;

/** "My gateway's certificate has this key": what the address of a provider is pinned for is thereby true of the certificate. */
export const gatewayKey = z.object({
  provider: address("The provider's account."),
  spkiSHA256: z.string().regex(/^[0-9a-f]{64}$/),
  expiresAt: instant.describe('Unix seconds.'),
  signature,
});
export type GatewayKey = z.infer<typeof gatewayKey>;

/** A registration may be signed for no longer, and a statement of a key for no longer. */
export const maxRegistrationSeconds = 120;
export const maxGatewayKeySeconds = 86_400;
/** Clocks of both sides may differ by so much. */
export const linkClockSkewSeconds = 30;

/** EIP-712 types. Their domain has neither chain nor contract, so that nothing else that the key signs is mistaken for them. */
export const linkDomainName = 'gpulease link';
export const linkMessageTypes = {
  LinkRegistration: [
    { name: 'provider', type: 'address' },
    { name: 'audienceUrl', type: 'string' },
    { name: 'challenge', type: 'bytes32' },
    { name: 'instance', type: 'bytes32' },
    { name: 'expiresAt', type: 'uint64' },
  ],
  GatewayKey: [
    { name: 'provider', type: 'address' },
    { name: 'spkiSHA256', type: 'bytes32' },
    { name: 'expiresAt', type: 'uint64' },
  ],
} as const;

/** The message that is signed, without its signature. */
export const registrationMessage = (given: Omit<Registration, 'signature'>) => ({
  provider: given.provider as Address,
  audienceUrl: given.audienceUrl,
  challenge: given.challenge as Hex32,
  instance: given.instance as Hex32,
  expiresAt: given.expiresAt,
});

/** Scheme, host and port of a listener for links: what a registration is for. Throws for what is no wss or https URL. */
export function audienceOf(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (!url || (url.protocol !== 'wss:' && url.protocol !== 'https:'))
    throw new TypeError(`must be a URL such as wss://gpulease.example.com:9444; given: ${text.slice(0, 200)}`);
  const port = url.port || '443';
  return `wss://${url.hostname.toLowerCase()}:${port}`;
}

/**
 * The URL for which a consumer signs that reaches a provider through a link: it has none of its own, and its account says who it
 * is. A name that resolves nowhere (RFC 6761).
 */
export const linkUrlOf = (provider: string): string => `https://${provider.toLowerCase()}.gpulease.invalid`;
