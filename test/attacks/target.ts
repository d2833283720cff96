/** What is attacked, and the means that everybody has: connections, bytes, and keys of one's own. */

import http2 from 'node:http2';
import https from 'node:https';
import type { Duplex } from 'node:stream';
import { type ConnectionOptions, type TLSSocket, connect as tlsConnect } from 'node:tls';
import type { ChainKey } from '../../operator/adapters/chain/key.ts';
import { signAccess, signVoucher } from '../../operator/adapters/chain/messages.ts';
import type { SignedQuote } from '../../operator/api/gateway.ts';
import type { GpuLease } from '../../operator/api/lease.ts';
import type { Address, Hex32, MessageDomain, Quote } from '../../operator/api/messages.ts';
import type { GpuOffer } from '../../operator/api/offer.ts';
import type { GpuProvider } from '../../operator/api/provider.ts';
import type { KubeObject } from '../../operator/engine/types.ts';
import type { Liar } from './liar.ts';

export interface Answer {
  readonly status: number;
  readonly type?: string;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: string;
}

/** A consumer with a lease that it pays for. */
export interface Party {
  readonly consumer: Address;
  readonly session: ChainKey;
  readonly leaseId: Hex32;
  readonly quote: SignedQuote;
}

/** The provider's cluster, for who got hold of a tenant's account. */
export interface Real {
  /** Its API server, as the account of the hostile tenant. */
  asTenant(method: string, path: string, body?: object): Promise<{ status: number; body: string }>;
  /** As the administrator, to look what came of an attack. */
  asAdmin(method: string, path: string, body?: object): Promise<{ status: number; body: string }>;
  readonly tenantNamespace: string;
  readonly victimNamespace: string;
  readonly nodeName: string;
  /** Everything that the gateway wrote. */
  gatewayLog(): string;
  /** Bytes that are resident. */
  gatewayMemory(): number;
  readonly operationsPort: number;
  /** Runs a command in a pod of the hostile tenant. */
  exec(command: readonly string[]): Promise<string>;
}

/** The consumer of a provider that lies, seen from its own cluster. */
export interface Deceived {
  readonly liar: Liar;
  provider(): Promise<GpuProvider>;
  /** Waits until the provider is Ready again. */
  recovered(): Promise<void>;
  offers(): Promise<readonly (GpuOffer & { metadata: { name: string } })[]>;
  /** How many escrows were ever opened. */
  escrows(): Promise<number>;
  /** A quote with a signature that fits it. */
  forge(quote: Quote, signer?: `0x${string}`): Promise<{ quote: object; signature: string }>;
  /** A lease that only the liar may serve; its name. */
  wish(): Promise<string>;
  lease(name: string): Promise<GpuLease | undefined>;
  forget(name: string): Promise<void>;
  /** There is a lease that the liar serves, and a pod on it that runs. */
  served(): Promise<void>;
  node(): Promise<(KubeObject & { status?: Record<string, unknown> }) | undefined>;
  pod(): Promise<(KubeObject & { status?: Record<string, unknown> }) | undefined>;
  foreignPods(): Promise<number>;
  events(): Promise<readonly { involvedObject: { name: string }; message?: string }[]>;
}

/** Where the gateway has dialled in: it may name any caller, and open as many connections as it likes. */
export interface Carrier {
  /** A raw connection to the gateway, in the name of this caller. */
  connect(from: string): Promise<Duplex>;
}

export interface Target {
  readonly host: string;
  readonly port: number;
  readonly publicUrl: string;
  readonly provider: Address;
  readonly domain: MessageDomain;
  readonly mallory: Party;
  /** Somebody else's lease; only its id is known. */
  readonly victimLeaseId: Hex32;
  readonly stranger: ChainKey;
  readonly usdc: Address;
  nowSeconds(): number;
  /** A token that mallory may have. */
  token(): Promise<string>;
  /** Undefined while an honest caller is answered; what is wrong otherwise. */
  honest(): Promise<string | undefined>;
  readonly real?: Real;
  readonly deceived?: Deceived;
  readonly carrier?: Carrier;
}

const insecure = { rejectUnauthorized: false } as const;

export interface Asked {
  readonly method?: string;
  readonly path: string;
  readonly body?: string | object;
  readonly token?: string;
  readonly headers?: Readonly<Record<string, string | string[]>>;
}

/** One request over a connection of its own. The path is sent as it is. */
export function ask(target: Target, { method = 'GET', path, body, token, headers }: Asked): Promise<Answer> {
  const payload = body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body);
  return new Promise((resolve, reject) => {
    const request = https.request({
      ...insecure,
      ...{ host: target.host, port: target.port, method, path, agent: false, timeout: 60_000 },
      headers: {
        ...(payload === undefined
          ? {}
          : { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(payload)) }),
        ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
        ...headers,
      },
    });
    request.once('timeout', () => request.destroy(new Error('no answer within a minute')));
    request.once('error', reject);
    request.once('upgrade', (response, socket) => {
      socket.destroy();
      resolve({ status: response.statusCode ?? 0, headers: response.headers, body: 'switched protocols' });
    });
    request.once('response', (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.once('error', reject);
      response.once('end', () =>
        resolve({
          status: response.statusCode ?? 0,
          type: response.headers['content-type'],
          headers: response.headers,
          body: Buffer.concat(chunks).toString('utf8'),
        }),
      );
    });
    request.end(payload);
  });
}

/** A TLS connection, ready to be written to. */
export function wire(target: Target, options: ConnectionOptions = {}): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const socket = tlsConnect({ ...insecure, host: target.host, port: target.port, ...options });
    socket.once('secureConnect', () => {
      socket.removeListener('error', reject);
      socket.on('error', () => undefined);
      resolve(socket);
    });
    socket.once('error', reject);
  });
}

/** Everything that came back until the connection was closed, or the time was over. */
export function heard(socket: TLSSocket, seconds: number): Promise<{ text: string; closed: boolean; ms: number }> {
  return new Promise((resolve) => {
    const startedAt = performance.now();
    let text = '';
    const done = (closed: boolean) => {
      clearTimeout(timer);
      socket.destroy();
      resolve({ text, closed, ms: Math.round(performance.now() - startedAt) });
    };
    const timer = setTimeout(() => done(false), seconds * 1000);
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
    });
    socket.once('end', () => done(true));
    socket.once('close', () => done(true));
  });
}

/** Bytes of one's own making. */
export async function raw(target: Target, bytes: string | Buffer, seconds = 3): Promise<Answer> {
  const socket = await wire(target);
  socket.write(bytes);
  const { text } = await heard(socket, seconds);
  const [head = '', ...rest] = text.split('\r\n\r\n');
  const type = /^content-type: (.*)$/im.exec(head)?.[1];
  return {
    status: Number(/^HTTP\/1\.[01] (\d{3})/.exec(head)?.[1] ?? 0),
    ...(type === undefined ? {} : { type }),
    headers: { answers: String((text.match(/HTTP\/1\.1 \d{3} /g) ?? []).length) },
    body: rest.join('\r\n\r\n'),
  };
}

/** One request over HTTP/2. */
export async function askOverH2(target: Target, headers: http2.OutgoingHttpHeaders, body?: string): Promise<Answer> {
  const socket = await wire(target, { ALPNProtocols: ['h2'] });
  const session = http2.connect('https://gateway', { createConnection: () => socket });
  session.on('error', () => undefined);
  try {
    return await new Promise<Answer>((resolve, reject) => {
      const stream = session.request(headers, { endStream: body === undefined });
      let text = '';
      let answered: http2.IncomingHttpHeaders = {};
      stream.setTimeout(15_000, () => reject(new Error('no answer over HTTP/2')));
      stream.on('response', (given) => {
        answered = given;
      });
      stream.on('data', (chunk) => {
        text += String(chunk);
      });
      stream.once('error', reject);
      session.once('close', () => reject(new Error('the connection was closed')));
      stream.once('end', () =>
        resolve({
          status: Number(answered[':status'] ?? 0),
          type: answered['content-type'],
          headers: answered as Answer['headers'],
          body: text,
        }),
      );
      if (body !== undefined) stream.end(body);
    });
  } finally {
    session.destroy();
  }
}

let nonces = 0;
export const freshNonce = (): Hex32 =>
  `0x${(BigInt(Date.now()) * 1_000_000n + BigInt(++nonces)).toString(16).padStart(64, '0')}`;

/** An Access as mallory would sign it, with whatever changes. */
export async function access(
  target: Target,
  changes: { leaseId?: Hex32; provider?: Address; audienceUrl?: string; nonce?: Hex32; expiresAt?: number } = {},
  { signer = target.mallory.session, domain = target.domain }: { signer?: ChainKey; domain?: MessageDomain } = {},
) {
  const message = {
    provider: target.provider,
    audienceUrl: target.publicUrl,
    leaseId: target.mallory.leaseId,
    nonce: freshNonce(),
    expiresAt: target.nowSeconds() + 120,
    ...changes,
  };
  const { signature } = await signAccess(signer, domain, message);
  const { leaseId: _, ...sent } = message;
  return { ...sent, signature: signature as string };
}

export async function voucher(
  target: Target,
  message: { servedSeconds: number; last?: boolean; leaseId?: Hex32 },
  { signer = target.mallory.session, domain = target.domain }: { signer?: ChainKey; domain?: MessageDomain } = {},
) {
  const { servedSeconds, last = false, leaseId = target.mallory.leaseId } = message;
  const { signature } = await signVoucher(signer, domain, { leaseId, servedSeconds, last });
  return { servedSeconds, last, signature: signature as string };
}
