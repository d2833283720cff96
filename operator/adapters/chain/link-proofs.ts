/**
 * Signs and checks what api/link.ts has signed. A provider that is a contract (ERC-1271) cannot be proved here: neither a relay
 * nor the moment of a connection has a chain to ask.
 */
import { createHash, X509Certificate } from 'node:crypto';
import { recoverAddress, TypedDataEncoder } from 'ethers';
import {
  type GatewayKey,
  gatewayKey,
  linkClockSkewSeconds,
  linkDomainName,
  linkMessageTypes,
  maxGatewayKeySeconds,
  type Registration,
  registrationMessage,
} from '../../api/link.ts';
import { domainVersion, type Hex } from '../../api/messages.ts';
import type { ChainKey, TypedFields } from './key.ts';

const domain = { name: linkDomainName, version: domainVersion };
type Kind = keyof typeof linkMessageTypes;
const typesOf = (kind: Kind): TypedFields => ({ [kind]: linkMessageTypes[kind].map((field) => ({ ...field })) });

function signedBy(kind: Kind, message: object, signature: string, expected: string): boolean {
  try {
    const hash = TypedDataEncoder.hash(domain, typesOf(kind), { ...message });
    return signature.length === 132 && recoverAddress(hash, signature).toLowerCase() === expected.toLowerCase();
  } catch {
    return false;
  }
}

export const signRegistration = (key: ChainKey, message: ReturnType<typeof registrationMessage>): Promise<Hex> =>
  key.signTypedData(domain, typesOf('LinkRegistration'), { ...message });

/** Whether the account that it names signed it. */
export const verifyRegistration = (given: Registration): boolean =>
  signedBy('LinkRegistration', registrationMessage(given), given.signature, given.provider);

const keyMessage = ({ provider, spkiSHA256, expiresAt }: Omit<GatewayKey, 'signature'>) => ({
  provider,
  spkiSHA256: `0x${spkiSHA256}`,
  expiresAt,
});

/** Remade when this much of its time is left. */
const renewAheadSeconds = maxGatewayKeySeconds / 2;

/** The statement of the gateway's certificate as a header's value, signed anew when it grows old or the certificate changes. */
export function gatewayKeyStatement(key: ChainKey, certPem: () => string, now: () => Date): () => Promise<string> {
  let made: { spkiSHA256: string; expiresAt: number; header: Promise<string> } | undefined;
  return () => {
    const nowSeconds = Math.floor(now().getTime() / 1000);
    const spki = new X509Certificate(certPem()).publicKey.export({ type: 'spki', format: 'der' });
    const spkiSHA256 = createHash('sha256').update(spki).digest('hex');
    if (made?.spkiSHA256 === spkiSHA256 && made.expiresAt - nowSeconds > renewAheadSeconds) return made.header;
    const expiresAt = nowSeconds + maxGatewayKeySeconds;
    const message = { provider: key.address, spkiSHA256, expiresAt };
    const header = key
      .signTypedData(domain, typesOf('GatewayKey'), keyMessage(message))
      .then((signature) => Buffer.from(JSON.stringify({ ...message, signature })).toString('base64url'));
    made = { spkiSHA256, expiresAt, header };
    header.catch(() => {
      made = undefined;
    });
    return header;
  };
}

/** What `header` says of this provider's certificate; or why it is not believed. Remembers the last that it believed. */
export function gatewayKeyReader(
  provider: string,
  now: () => Date,
): (header: unknown) => { spkiSHA256: string } | { why: string } {
  let known: { header: string; statement: GatewayKey } | undefined;
  return (header) => {
    if (typeof header !== 'string' || header.length > 2048)
      return { why: 'the gateway did not say what its certificate is' };
    const statement = known?.header === header ? known.statement : read(header);
    if (!statement) return { why: 'what the gateway said of its certificate cannot be read' };
    if (statement.provider.toLowerCase() !== provider.toLowerCase())
      return { why: `the gateway is that of ${statement.provider}, not of ${provider}` };
    const nowSeconds = now().getTime() / 1000;
    if (statement.expiresAt < nowSeconds - linkClockSkewSeconds)
      return { why: 'what the gateway said of its certificate has run out: are both clocks right?' };
    if (statement.expiresAt > nowSeconds + maxGatewayKeySeconds + linkClockSkewSeconds)
      return { why: 'what the gateway said of its certificate holds for too long: are both clocks right?' };
    if (known?.header !== header) {
      if (!signedBy('GatewayKey', keyMessage(statement), statement.signature, provider))
        return { why: `what the gateway said of its certificate is not signed by ${provider}` };
      known = { header, statement };
    }
    return { spkiSHA256: statement.spkiSHA256 };
  };
}

function read(header: string): GatewayKey | undefined {
  try {
    return gatewayKey.safeParse(JSON.parse(Buffer.from(header, 'base64url').toString('utf8'))).data;
  } catch {
    return undefined;
  }
}
